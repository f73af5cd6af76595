"""What a method is made of: refinements, each of which proposes another state of what it is given.

A refinement says of itself what it needs and what it decides; whether a combination of methods
makes sense follows from that (``tvmq/reconstruct/methods.py``). Nothing here imports torch, and
neither do the files of refinements before they are asked to propose something: the command line
reads the table of methods too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from tvmq.reconstruct.network_work import NetworkPass, NetworkWork
    from tvmq.reconstruct.unit_work import UnitWork
    from tvmq.settings import Settings

ROUNDING = "how the weights are rounded"


@dataclass(frozen=True)
class Need:
    """Something without which a method makes no sense.

    Attributes:
        holds: whether settings have it.
        otherwise: what to tell who has not, behind ``method NAME``: why, and what to do.
    """

    holds: Callable[[Settings], bool]
    otherwise: str


POWERS_OF_TWO = Need(
    lambda settings: settings.pot,
    "is about power-of-two steps; use --scales pot, or qdrop for free ones.",
)


class Refinement(ABC):
    """Proposes another state of a unit. The engine measures it and keeps the best so far.

    Subclasses are frozen dataclasses: their ``repr`` says which job a checkpoint is of.

    Attributes:
        name: of what it proposes, in the report, in a plan's reasons and in checkpoints.
        needs: of the settings.
        decides: what no other method may decide too, in words.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    decides: ClassVar[frozenset[str]] = frozenset()

    def iterations(self, settings: Settings) -> int:
        """Of an optimizer, per unit, for the progress bar."""
        return 0

    @abstractmethod
    def propose(self, work: UnitWork) -> None:
        """Change ``work.unit`` in place, from the state that the last refinement proposed.

        That state need not be the best so far: what is worse now may be the better start.
        """


class NetworkRefinement(ABC):
    """Changes all units together, once each of them is decided; holds the gate itself.

    Attributes:
        name: of what it does, in the report.
        needs: of the settings.
        decides: what no other method may decide too, in words.
        least_held_out: images without which its gate can accept nothing.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    decides: ClassVar[frozenset[str]] = frozenset()
    least_held_out: ClassVar[int] = 1

    def iterations(self, settings: Settings) -> int:
        """Of an optimizer, for all units together."""
        return 0

    @abstractmethod
    def refine(self, work: NetworkWork) -> NetworkPass:
        """Change ``work.units`` and ``work.steps`` in place, where held-out images agree."""
