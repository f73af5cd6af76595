"""Plans as JSON: there and back, edited, and wrong."""

import base64
import json
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from quantization_cases import calibration, float_model

from targets.errors import InputError, UnsupportedError
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_file import plan_from_json, plan_to_json, read_plan, write_plan
from tvmq.plan.plan_schema import PlanFile
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings

NAME = "resnet_small"
VALUE = {"step": 1.0, "zero_point": 0, "type": "int8", "bits": 8}
NO_CODES = "eJwDAAAAAAE="
LAYER = {"weight_steps": [1.0], "weight_bits": 8}


@pytest.fixture(scope="module")
def text():
    return plan_to_json(make_plan(float_model(NAME), calibration(NAME)))


@pytest.mark.parametrize("scales", ["pot", "free"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_round_trip(tmp_path, scales, granularity):
    settings = Settings(scales=scales, granularity=granularity, exclude=("layer1.*",))
    plan = make_plan(float_model(NAME), calibration(NAME), settings)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json", float_model(NAME)) == plan


def test_every_value_and_layer_has_a_reason(text):
    document = json.loads(text)
    for entry in (*document["values"].values(), *document["layers"].values()):
        assert entry["reason"]


def test_an_edited_step_changes_what_follows_from_it(text):
    document = json.loads(text)
    before = plan_from_json(text, float_model(NAME))
    document["values"]["relu_1"]["step"] = before.values["relu_1"].step * 2
    after = plan_from_json(json.dumps(document), float_model(NAME))
    assert after.requantize["conv2d_1"].shift[0] == before.requantize["conv2d_1"].shift[0] + 1
    assert after.requantize["conv2d_2"].shift[0] == before.requantize["conv2d_2"].shift[0] - 1


def test_half_up_goes_without_saying(text):
    for entry in json.loads(text)["values"].values():
        assert not {"rounding", "borders"} & set(entry)


def test_a_rounding_comes_back(text):
    document = json.loads(text)
    document["values"]["relu_1"]["rounding"] = "FLOOR"
    plan = plan_from_json(json.dumps(document), float_model(NAME))
    assert {name for name, value in plan.values.items() if value.rounding == FLOOR} == {"relu_1"}
    assert plan_from_json(plan_to_json(plan), float_model(NAME)) == plan


@pytest.mark.parametrize("name", ["x", "relu_1"], ids=["signed", "unsigned"])
@pytest.mark.parametrize("channels", [False, True], ids=["one row", "a row per channel"])
def test_borders_come_back_and_are_refused_by_what_does_not_execute_them(text, name, channels):
    plan = plan_from_json(text, float_model(NAME))
    value = plan.values[name]
    count = float_model(NAME).nodes[name].meta["val"].shape[1] if channels else 1
    rows = np.random.default_rng(0).integers(1, 256, (count, 255), np.uint8)
    first = -128 if value.signed else 0
    rounding = Rounding(RoundingMode.BORDER, tuple(row.tobytes() for row in rows), first)
    values = plan.values | {name: replace(value, rounding=rounding)}
    written = plan_to_json(replace(plan, values=values))
    entries = PlanFile.model_validate_json(written).values
    assert entries[name].rounds == rounding
    assert {entry.rounds for n, entry in entries.items() if n != name} == {HALF_UP}
    why = "no convolution, linear layer or av" if name == "x" else "it has 8 bits, and at most"
    with pytest.raises(UnsupportedError, match=f"value {name}: rounds by BORDER, but {why}"):
        plan_from_json(written, float_model(NAME))


@pytest.mark.parametrize("rows", [1, 16])
def test_borders_of_few_bits_come_back(rows):
    settings = Settings(4, 4, granularity="channel")
    plan = make_plan(float_model(NAME), calibration(NAME), settings)
    document = json.loads(plan_to_json(plan))
    borders = np.random.default_rng(0).integers(1, 256, (rows, 15))
    document["values"]["relu_1"] |= {"rounding": "BORDER", "borders": borders.tolist()}
    found = plan_from_json(json.dumps(document), float_model(NAME))
    np.testing.assert_array_equal(found.values["relu_1"].rounding.rows, borders)
    assert plan_from_json(plan_to_json(found), float_model(NAME)) == found


def test_a_border_of_zero_is_none(text):
    document = json.loads(text)
    document["values"]["relu_1"] |= {"rounding": "BORDER", "borders": [[0] * 255]}
    with pytest.raises(InputError, match=r"values.relu_1.borders.0.0 is 0.*greater than or equal"):
        plan_from_json(json.dumps(document), float_model(NAME))


def test_borders_are_of_all_channels_or_of_each(text):
    document = json.loads(text)
    document["values"]["relu_1"] |= {"rounding": "BORDER", "borders": [[128] * 255] * 3}
    with pytest.raises(InputError, match=r"values.relu_1.borders has 3 rows; give .* 1 or 16"):
        plan_from_json(json.dumps(document), float_model(NAME))


def _edit(text, path, value):
    document = json.loads(text)
    *parents, last = path
    entry = document
    for key in parents:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("values", "relu_1", "step"),
            0.03,
            r'values.relu_1.step is 0.03; give a power of two such as "2\^-5"',
        ),
        (("values", "relu_1", "step"), "2^x", r"values.relu_1.step is '2\^x': .*valid number"),
        (("values", "relu_1", "step"), -1, "values.relu_1.step: -1 is no step"),
        (("values", "relu_1", "zero_point"), 300, r"values.relu_1: zero_point is 300.*\[0, 255\]"),
        (("values", "relu_1", "bits"), 9, "values.relu_1.bits is 9: .*less than or equal to 8"),
        (("values", "relu_1", "type"), "int4", "values.relu_1.type is 'int4': .*'int8' or 'uint8'"),
        (("values", "relu_1", "rounding"), "UP", "relu_1.rounding: UP is no rounding; give one of"),
        (("values", "relu_1", "rounding"), "BORDER", "relu_1: BORDER with 0 rows of borders"),
        (("values", "relu_1", "borders"), [[1] * 255], "values.relu_1: HALF_UP with 1 rows"),
        (("values", "relu_1", "borders"), [[1] * 254], "row of borders has 254 numbers; give 255"),
        (("values", "relu_1", "borders"), [[256] * 255], "values.relu_1.borders.0.0 is 256"),
        (("values", "relu_9"), VALUE, "values.relu_9 is not in the network"),
        (("values", "relu_1"), None, "values.relu_1 is missing"),
        (
            ("layers", "conv2d", "weight_steps"),
            [1, 2],
            "layers.conv2d.weight_steps has 2 numbers; give 1 or 16",
        ),
        (("layers", "conv2d", "weight_steps"), [0.3], r"weight_steps\[0\].*power of two"),
        (
            ("layers", "conv2d", "bias_correction"),
            {"add": [1]},
            "bias_correction.add has 1 numbers",
        ),
        (("layers", "conv9"), LAYER, "layers.conv9 is not in the network"),
        (
            ("settings", "scales"),
            "logarithmic",
            "settings.scales is 'logarithmic': .*'pot' or 'free'",
        ),
        (("settings", "scale"), 1, "settings.scale is 1: Unexpected"),
        (("settings", "method"), "rapq", "plan: settings.method is 'rapq': .*array"),
        (("settings", "method"), [None], "settings.method.0 is None: .*string"),
        (("settings", "exclude"), 1, "settings.exclude is 1: .*array"),
        (("settings", "iterations"), "x", "settings.iterations is 'x': .*integer"),
        (("settings", "weight_bits"), True, "settings.weight_bits is True: .*integer"),
        (
            ("settings", "learn_batch"),
            0,
            "plan: settings: learn_batch is 0; give a whole number from 1",
        ),
        (("settings", "kappa"), "x", "settings.kappa is 'x': .*number"),
        (("settings", "bias_correction"), "no", "settings.bias_correction is 'no': .*boolean"),
        (("learned_codes",), [], r"learned_codes is \[\]: .*object"),
        (("learned_codes", "conv9"), NO_CODES, "learned_codes.conv9 is not in the network"),
        (
            ("learned_codes", "avg_pool2d"),
            NO_CODES,
            "learned_codes.avg_pool2d is not in the network",
        ),
        (("settings", "kappa"), 5, r"plan: settings: kappa is 5.0; give a number in \[0, 1\]"),
        (("values", "relu_1", "step"), 1e999, "values.relu_1.step"),
        (("values", "relu_1", "step"), 1.7e308, r"1.7e\+308 is no step; give one from 2\^-126"),
        (("values", "relu_1", "step"), 5e-324, "is no step"),
        (("values", "relu_1", "step"), "2^128", "is no step"),
        (("settings", "method"), None, "settings.method is missing"),
        (("layers", "avg_pool2d", "bias_correction"), {"add": []}, "this layer has no bias"),
        (("values", "relu_1", "scale"), 1, "values.relu_1.scale is no field"),
        (("learned_codes", "conv2d"), "AAAA", "learned_codes.conv2d: not zlib in base64"),
        (("learned_codes", "conv2d"), NO_CODES, "learned_codes.conv2d holds 0 codes"),
        (("model",), "0", "another network"),
        (("format",), "x", "not a tvmq-plan"),
    ],
)
def test_wrong_entries_are_named(text, path, value, message):
    with pytest.raises(InputError, match=message):
        plan_from_json(_edit(text, path, value), float_model(NAME))


@pytest.fixture(scope="module")
def learned():
    """The plan of a network whose first layer has learned codes."""
    plan = make_plan(float_model(NAME), calibration(NAME))
    weight = plan.weights["conv2d"]
    count = float_model(NAME).weight_of(float_model(NAME).nodes["conv2d"]).numel()
    codes = (np.arange(count) % 16 - 8).astype(np.int8).tobytes()
    return replace(plan, weights={**plan.weights, "conv2d": replace(weight, bits=4, codes=codes)})


def test_learned_codes_come_back(learned):
    again = plan_from_json(plan_to_json(learned), float_model(NAME))
    assert again.weights == learned.weights
    text = _edit(plan_to_json(learned), ("learned_codes", "conv2d"), None)
    assert plan_from_json(text, float_model(NAME)).weights["conv2d"].codes == b""


def test_learned_codes_must_fit_their_bits(learned):
    text = _edit(plan_to_json(learned), ("layers", "conv2d", "weight_bits"), 3)
    with pytest.raises(
        InputError, match=r"codes in \[-8, 7\], the layer takes \[-4, 3\] with 3 bits"
    ):
        plan_from_json(text, float_model(NAME))


def packed(*parts):
    return base64.b64encode(b"".join(parts)).decode()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (packed(zlib.compress(bytes(2**24))), "holds more than .* codes"),
        (packed(zlib.compress(bytes(100))[:-3]), "not zlib in base64 .incomplete"),
        (packed(zlib.compress(bytes(100)), b"more"), "followed by something else"),
        (packed(), "not zlib in base64"),
    ],
)
def test_learned_codes_are_no_more_than_the_layer_takes(learned, codes, message):
    text = _edit(plan_to_json(learned), ("learned_codes", "conv2d"), codes)
    tracemalloc.start()
    with pytest.raises(InputError, match=f"learned_codes.conv2d.*{message}"):
        plan_from_json(text, float_model(NAME))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


def test_steps_are_numbers_or_powers_of_two(text):
    for step in (0.25, "2^-2", "2^-0002"):
        plan = plan_from_json(_edit(text, ("values", "relu_1", "step"), step), float_model(NAME))
        assert plan.values["relu_1"].step == 0.25


def test_complaints_stay_short(text, learned):
    """A plan has megabytes of codes; what is wrong with it fits a line."""
    unpadded = _edit(plan_to_json(learned), ("learned_codes", "conv2d_1"), "A" * 100_001)
    for wrong in (text[:5000], text + "x", unpadded, _edit(text, ("values",), [0] * 9999)):
        with pytest.raises(InputError) as caught:
            plan_from_json(wrong, float_model(NAME))
        assert len(str(caught.value)) < 300


def test_a_joined_value_may_have_a_step_of_its_own():
    """It is requantized where it is joined; the others that shared its step keep theirs."""
    name = "densenet_small"
    model = float_model(name)
    first = make_plan(model, calibration(name))
    edited = plan_from_json(
        _edit(plan_to_json(first), ("values", "relu_1", "step"), 2.0**-9), model
    )
    assert edited.values["relu_1"].step == 2.0**-9
    assert edited.values["relu"] == first.values["relu"]
    assert edited.values["cat"] == first.values["cat"]
    tables = [
        node.name
        for node in annotate(model, edited).graph.nodes
        if node.name.startswith("cat") and node.name.endswith("_q")
    ]
    assert tables == ["cat_input_1_q"]


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_not_a_plan(content):
    with pytest.raises(InputError, match="is not"):
        plan_from_json(content, float_model(NAME))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "none.json", float_model(NAME))


def _numbers_in(item, path=()):
    """Paths to the numbers of a document that a reader takes."""
    if isinstance(item, dict | list):
        entries = item.items() if isinstance(item, dict) else enumerate(item)
        for key, below in entries:
            if key not in ("derived", "additions"):
                yield from _numbers_in(below, (*path, key))
    elif isinstance(item, int | float) and not isinstance(item, bool):
        yield path


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_no_number_of_a_plan_may_be_none(text, number):
    paths = list(_numbers_in(json.loads(text)))
    assert ("values", "x", "zero_point") in paths
    assert ("settings", "kappa") in paths
    assert any("bias_correction" in path for path in paths)
    first = {tuple(key for key in path if isinstance(key, str)): path for path in reversed(paths)}
    for path in first.values():  # of each list, one
        edited = _edit(text, path, "PLACE").replace('"PLACE"', number)
        named = [key for key in path if isinstance(key, str)][-1]
        with pytest.raises(InputError, match=named):
            plan_from_json(edited, float_model(NAME))
