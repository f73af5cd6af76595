"""What the compiler decides of a program by rule, as a value that takes the rule's place.

Everything is named by a tensor: a layer's cut by what the layer makes, a cascade by what its first
layer makes. What isn't named is decided by rule; ``NO_CHOICES`` gives the rule's program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

from targets.npu.convolution.tile_cost import ConvTiling


class CascadeChoice(NamedTuple):
    """How many layers work stripe by stripe, and the rows of the last one's stripes.

    One layer is none: the cascade that the rule would take there is not taken.
    """

    layers: int
    rows: int


class Leads(NamedTuple):
    """How many instructions earlier a layer's are issued than by rule, unit by unit."""

    ld: int = 0
    mm: int = 0
    vu: int = 0
    st: int = 0


Order = Literal["written", "loads-0", "loads-1", "loads-2", "loads-3", "free"]
"""An order of issue: one layer after the other, or as a clock says by which every unit takes what
it can; loads then begin at most so many layers before those that are written earlier, or any time.
"""
ORDERS: tuple[Order, ...] = get_args(Order)
WRITTEN: Order = "written"
FREE: Order = "free"


@dataclass(frozen=True)
class Turns:
    """In which order the instructions of a program are issued.

    Attributes:
        order: one of ``ORDERS``; "" is the fastest.
        leads: by what a layer makes, against that order. What an instruction needs still comes
            before it.
    """

    order: Order | Literal[""] = ""
    leads: Mapping[str, Leads] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.order or self.leads)


@dataclass(frozen=True)
class Choices:
    """Decisions about the layers of one program.

    Attributes:
        cuts: how a layer is cut: a tiling of a convolution, the rows, bytes or pixels of a step of
            any other.
        stays: whether a tensor stays in ACT. One that is to stay does so even if the layers beside
            it take longer by estimate.
        cascades: layers that work stripe by stripe.
        turns: the order of instructions.
    """

    cuts: Mapping[str, ConvTiling | int] = field(default_factory=dict)
    stays: Mapping[str, bool] = field(default_factory=dict)
    cascades: Mapping[str, CascadeChoice] = field(default_factory=dict)
    turns: Turns = Turns()

    def __bool__(self) -> bool:
        return bool(self.cuts or self.stays or self.cascades or self.turns)

    def as_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        return {
            "cuts": {name: cut_as_json(cut) for name, cut in sorted(self.cuts.items())},
            "stays": dict(sorted(self.stays.items())),
            "cascades": {name: list(each) for name, each in sorted(self.cascades.items())},
            "turns": {
                "order": self.turns.order,
                "leads": {name: list(each) for name, each in sorted(self.turns.leads.items())},
            },
        }

    @staticmethod
    def from_json(data: Any) -> Choices:
        """Of what a file holds.

        Raises:
            pydantic.ValidationError: it is something else.
        """
        read = _Choices.model_validate(data)
        cuts = {name: _cut(cut) for name, cut in read.cuts.items()}
        cascades = {name: CascadeChoice(*each) for name, each in read.cascades.items()}
        leads = {name: Leads(*each) for name, each in read.turns.leads.items()}
        order = WRITTEN if read.turns.as_written else read.turns.order
        return Choices(cuts, read.stays, cascades, Turns(order, leads))


NO_CHOICES = Choices()


def cut_as_json(cut: ConvTiling | int) -> dict[str, int | bool] | int:
    """A cut as JSON."""
    return _Tiling(**vars(cut)).model_dump() if isinstance(cut, ConvTiling) else cut


def cut_from_json(data: Any) -> ConvTiling | int:
    """The other way round.

    Raises:
        pydantic.ValidationError: it is no cut.
    """
    return _cut(_Cut.model_validate({"cut": data}).cut)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Size = Annotated[int, Field(gt=0)]


class _Tiling(_Model):
    rows: Size
    tiles: Size
    k0: Size
    chunk_rows: Size
    chunk_columns: Size
    rows_outer: bool
    kernel_rows: Size
    in_pieces: bool


class _Cut(_Model):
    cut: Size | _Tiling


def _cut(read: int | _Tiling) -> ConvTiling | int:
    return read if isinstance(read, int) else ConvTiling(**read.model_dump())


class _Turns(_Model):
    order: Order | Literal[""] = ""
    as_written: bool = False  # of files of before there were other orders
    leads: dict[str, Annotated[list[int], Field(min_length=4, max_length=4)]] = {}


class _Choices(_Model):
    cuts: dict[str, Size | _Tiling] = {}
    stays: dict[str, bool] = {}
    cascades: dict[str, Annotated[list[Size], Field(min_length=2, max_length=2)]] = {}
    turns: _Turns = _Turns()
