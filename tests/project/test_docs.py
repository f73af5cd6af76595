"""Documents name things that exist, and every word of the command line is explained."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tvmq.cli import VERBS, cli
from tvmq.tune import trial_server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("targets/**/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def test_there_is_a_readme():
    assert (ROOT / "README.md").is_file()


def test_links_lead_somewhere():
    dead = []
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for match in LINK.finditer(text):
            outside = "://" in match[1] or match[1].startswith("mailto")
            if not outside and not (path.parent / match[1]).exists():
                dead.append((path.relative_to(ROOT).as_posix(), match[1]))
    assert dead == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb):
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_shared_options(verb):
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    known = {word for parameter in command.params for word in parameter.opts}
    assert {"--json", "--verbose", "--quiet", "--no-color", "--config"} <= known


FOLDERS = "tvmq|relay_passes|targets|tests|docs|benchmarks|scripts|examples|tutorials"
PLACE = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w/.-]*\w)")
MODULE = re.compile(r"python -m (benchmarks\.\w+)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def test_files_and_folders_that_are_named_exist():
    missing = set()
    for path in DOCUMENTS:
        text = path.read_text()
        modules = [f"{name.replace('.', '/')}.py" for name in MODULE.findall(text)]
        named = {*PLACE.findall(text), *modules}
        missing |= {(path.name, name) for name in named if not (ROOT / name).exists()}
    assert missing == set()


def test_options_that_are_named_exist():
    commands = [cli.get_command(click.Context(cli), verb) for verb in VERBS]
    commands.append(trial_server.main)
    known = {word for command in commands for option in command.params for word in option.opts}
    known |= {"--help", *OPTION.findall("".join(map(Path.read_text, ROOT.glob("benchmarks/*.py"))))}
    named = {(path.name, word) for path in DOCUMENTS for word in OPTION.findall(path.read_text())}
    assert {(page, word) for page, word in named if word not in known} == set()
