"""The outputs of an exported program: their names, and what none can be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from targets.errors import UnsupportedError


def output_paths(program: ExportedProgram) -> list[str]:
    """Dict keys that lead to each output, joined by dots; empty where there are none.

    Raises:
        UnsupportedError: the network changes its own buffers.
    """
    for output in program.graph_signature.output_specs:
        if output.kind != OutputKind.USER_OUTPUT:
            raise UnsupportedError(
                f"the network changes its own buffer {output.target}. Export model.eval(), and "
                "leave out what counts or remembers."
            )
    spec = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    if spec is None or spec.num_leaves != count:
        return [""] * len(program.graph_signature.output_specs)
    tree = pytree.tree_unflatten(list(range(count)), spec)
    paths, _ = pytree.tree_flatten_with_path(tree)
    names = []
    for path, _index in paths:
        keyed = any(isinstance(key, pytree.MappingKey) for key in path)
        parts = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
        names.append(".".join(parts) if keyed else "")
    return names


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Names that are there already with something behind them."""
    found: list[str] = []
    for name in names:
        while name in found:
            name += "_again"
        found.append(name)
    return tuple(found)


def refuse_constant(name: str | int) -> NoReturn:
    """Raise of an output that is the same for all inputs."""
    raise UnsupportedError(
        f"output {name} does not depend on the inputs. Leave it out of what forward returns, and "
        "export again."
    )


def refuse_moved(name: str | int) -> NoReturn:
    """Raise of an output that is no row of images."""
    raise UnsupportedError(
        f"output {name} has its batch elsewhere than on axis 0 alone. Move it there before it is "
        "returned."
    )
