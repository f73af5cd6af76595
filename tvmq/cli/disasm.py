"""`tvmq disasm`: the NPU programs of an artifact as text."""

from __future__ import annotations

from pathlib import Path

import click

from targets.errors import InputError
from tvmq.cli.options import PATH, shared_options
from tvmq.cli.terminal import Terminal


@click.command("disasm")
@click.argument("artifact", metavar="ART", type=PATH)
@shared_options
@click.pass_obj
def command(terminal: Terminal, artifact: Path) -> None:
    """Print the NPU programs of ART, instruction by instruction, under their layers."""
    from targets.npu.machine.disassemble import disassemble, instruction_text
    from tvmq.artifact.artifact import Artifact

    programs = Artifact.load(artifact).programs()
    if not programs:
        raise InputError(f"{artifact}: has no NPU program. Build it with --target npu.")
    if terminal.json:
        data = {
            name: {
                "machine": program.machine,
                "instructions": [instruction_text(item) for item in program.instructions],
                "layers": [vars(span) for span in program.layers],
            }
            for name, program in programs.items()
        }
        terminal.print_json({"programs": data})
        return
    for name, program in programs.items():
        terminal.say(f"; {name}")
        terminal.say("\n".join(disassemble(program)))
