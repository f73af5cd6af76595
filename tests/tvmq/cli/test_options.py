"""Every option of every verb, as click declares them: no number gets in that is none."""

import click
import pytest

from targets.errors import InputError
from tvmq.build_request import BuildRequest
from tvmq.cli import VERBS, cli
from tvmq.cli.options import Real, Whole
from tvmq.settings import Settings

CONTEXT = click.Context(cli)
PARAMETERS = [
    pytest.param(verb, parameter, id=f"{verb}-{parameter.name}")
    for verb in VERBS
    for parameter in cli.get_command(CONTEXT, verb).params
]
NUMBERS = [p for p in PARAMETERS if isinstance(p.values[1].type, Whole | Real)]
NO_NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "9" * 5000, "", "0x1p9", "\u0661e99")
NO_PATHS = ("x" * 300, "a\0b", "")


def refused(parameter: click.Parameter, value: object) -> bool:
    try:
        parameter.type.convert(value, parameter, CONTEXT)
    except click.ClickException:
        return True
    return False


@pytest.mark.parametrize(("verb", "parameter"), PARAMETERS)
def test_every_type_is_one_of_ours_or_has_no_numbers(verb, parameter):
    kind = parameter.type
    if isinstance(kind, Whole | Real):
        assert kind.min is not None
        assert kind.max is not None
        assert not kind.clamp
    else:
        plain = click.types.StringParamType | click.types.BoolParamType | click.Choice | click.Path
        counter = isinstance(parameter, click.Option) and parameter.count
        assert isinstance(kind, plain) or counter, "its numbers would not be checked"
    if isinstance(kind, click.Path):
        assert all(refused(parameter, value) for value in NO_PATHS)


@pytest.mark.parametrize(("verb", "parameter"), NUMBERS)
def test_what_is_no_number_within_the_bounds_is_refused(tvmq, tmp_path, verb, parameter):
    for value in (*NO_NUMBERS, parameter.type.min - 1, parameter.type.max + 1):
        assert refused(parameter, str(value)), value
    for value in (float("nan"), float("inf"), parameter.type.max + 1.5):
        assert refused(parameter, value), value
    # and so on the whole way, from the command line and from a configuration
    flag = parameter.opts[0]
    required = [p.opts[0] for p in cli.get_command(CONTEXT, verb).params[1:] if p.required]
    words = [verb, tmp_path, *(f"{name}=x" for name in required)]
    result = tvmq(*words, f"{flag}=nan")
    assert result.code == 2
    assert flag in result.err
    for text in ("nan", "-inf", "true", "[1]", "1979-05-27"):
        (tmp_path / "c.toml").write_text(f"[{verb}]\n{flag.lstrip('-')} = {text}\n")
        result = tvmq(*words, "--config", tmp_path / "c.toml")
        assert result.code == 2
        assert flag.lstrip("-") in result.err


def test_a_whole_number_is_never_cut(tvmq, tmp_path):
    (tmp_path / "c.toml").write_text("[build]\niters = 2.5\n")
    result = tvmq("build", tmp_path, "--config", tmp_path / "c.toml")
    assert result.code == 2
    assert "2.5 is not a whole number" in result.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strict = 1", "'strict' is 1; give true or false"),
        ("strict = 'no'", "'strict' is 'no'; give true or false"),
        ("exclude = 'a'", "'exclude' is 'a'; give a list of strings"),
        ("exclude = [1]", "'exclude' is [1]; give a list of strings"),
        ("seed = 'nan'", "'nan' is not a valid integer range"),
        ('plan = "a\\u0000b"', "has a NUL character in its name"),
        (f"plan = '{'x' * 300}'", "file name too long"),
        ("[build]\nkappa = {a = 1}", "'kappa' is {'a': 1}; give a string or a number"),
        ("a = " + "[" * 10_000, "nested too deeply"),
        ('a = "\udc80"', "not UTF-8 text"),
    ],
    ids=["1", "no", "exclude", "list", "nan", "nul", "long", "table", "deep", "bytes"],
)
def test_values_of_a_configuration(tvmq, tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text, errors="surrogateescape")
    result = tvmq("build", "m.pt2", "--config", tmp_path / "c.toml")
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_a_configuration_is_a_file(tvmq, tmp_path):
    assert "is a folder" in tvmq("build", "m.pt2", "--config", tmp_path).err
    assert "is a device" in tvmq("build", "m.pt2", "--config", "/dev/zero").err


NAN = float("nan")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Settings(kappa=NAN),
        lambda: Settings(percentile=NAN),
        lambda: Settings(iterations=NAN),
        lambda: Settings(learn_batch=2.5),
        lambda: Settings(weight_bits=NAN),
        lambda: BuildRequest("m", "a", max_fallback=NAN),
        lambda: BuildRequest("m", "a", max_fallback=float("inf")),
        lambda: BuildRequest("m", "a", calib_samples=0),
        lambda: BuildRequest("m", "a", batch=NAN),
        lambda: BuildRequest("m", "a", seed=-1),
    ],
)
def test_the_library_refuses_the_same(make):
    with pytest.raises(InputError, match="; give "):
        make()
