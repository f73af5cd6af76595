"""How a kernel is cut, as a value that takes the place of the rule.

Kernels that have a choice have a ``CutSpace``: the rule's cut, and all that may stand in its place.
In a network, cuts are named by what their layers make; a layer that isn't named is cut by rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


@dataclass(frozen=True, order=True)
class Cut:
    """Sizes that a kernel's schedule is free to choose; 1 where it has no such loop.

    Attributes:
        rows: of the image that a task has.
        pixels: of a tile, whose sums are kept in registers.
        vectors: of output channels of a tile.
        chunk: vectors of output channels that a task has.
        flat: whether a task's rows are one, in which a tile may go over the end of a row.
        winograd: whether it is Winograd's algorithm; its rows and pixels are tiles of 2 x 2.
    """

    rows: int = 1
    pixels: int = 1
    vectors: int = 1
    chunk: int = 1
    flat: bool = False
    winograd: bool = False

    def as_json(self) -> dict[str, int | bool]:
        """What ``cut_from_json`` reads."""
        return asdict(self)

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.as_json().items())


NO_CUTS: Mapping[str, Cut] = {}


@dataclass(frozen=True)
class CutSpace:
    """What a kernel may be cut like.

    Attributes:
        rule: the cut that it has if nothing else is said.
        cuts: all, the rule's included, in an order that depends on the layer and the host alone.
    """

    rule: Cut
    cuts: tuple[Cut, ...]

    def __contains__(self, cut: Cut) -> bool:
        return cut in self._known

    @cached_property
    def _known(self) -> frozenset[Cut]:
        return frozenset(self.cuts)


def cuts_as_json(cuts: Mapping[str, Cut]) -> dict[str, dict[str, int | bool]]:
    """Cuts by tensor, as ``cuts_from_json`` reads them."""
    return {name: cut.as_json() for name, cut in sorted(cuts.items())}


def cuts_from_json(data: Any) -> dict[str, Cut]:
    """Cuts by tensor, of what a file holds.

    Raises:
        pydantic.ValidationError: it is something else.
    """
    return {name: Cut(**vars(cut)) for name, cut in _CUTS.validate_python(data).items()}


def cut_from_json(data: Any) -> Cut:
    """One of them.

    Raises:
        pydantic.ValidationError: it is no cut.
    """
    return Cut(**vars(_Cut.model_validate(data)))


Size = Annotated[int, Field(gt=0)]


class _Cut(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    rows: Size
    pixels: Size
    vectors: Size
    chunk: Size
    flat: bool
    winograd: bool = False  # which cuts of older versions don't say


_CUTS = TypeAdapter(dict[str, _Cut])
