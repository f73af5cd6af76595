"""Documents name things that exist, and every word of the command line is explained."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tvmq.cli import VERBS, cli

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


FILE = re.compile(r"`((?:tvmq|relay_passes|targets|tests|docs|benchmarks)/[\w/]+\.py)`")


def test_files_that_are_named_exist():
    named = {(path.name, name) for path in DOCUMENTS for name in FILE.findall(path.read_text())}
    assert {(page, name) for page, name in named if not (ROOT / name).is_file()} == set()
