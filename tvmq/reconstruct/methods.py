"""The methods that ``--method`` knows, in one table: what each is made of and what it needs.

Settings, the command line's help and the engine read this table and nothing else. It imports no
torch, so that reading it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal, TypeAlias

from tvmq.reconstruct.refinement import ROUNDING, Need, NetworkRefinement, Refinement
from tvmq.reconstruct.refinements.borders import Borders
from tvmq.reconstruct.refinements.compensated import CompensatedCodes, SearchedExponents
from tvmq.reconstruct.refinements.factored_codes import FactoredCodes
from tvmq.reconstruct.refinements.learned import Learned, Phase
from tvmq.reconstruct.refinements.learned_together import LearnedTogether
from tvmq.reconstruct.refinements.network_exponents import NetworkExponents
from tvmq.reconstruct.refinements.scaled_products import ScaledProducts

if TYPE_CHECKING:
    from tvmq.settings import Settings

Units: TypeAlias = Literal["layers", "blocks"]


@dataclass(frozen=True)
class Method:
    """How a network is quantized, beyond rounding to nearest.

    Attributes:
        summary: for the command line's help, behind ``NAME:``.
        refinements: of a unit, in the order in which they are applied.
        over_network: of all units together, behind those.
        opening: of a unit, right before the refinement of another method that trains.
        units: what is refined at once; None: whatever the other methods say, otherwise blocks.
        scales: with powers of two, tensors are scaled so that these are their best steps.
        loss: of a unit, a name in ``losses.LOSSES``; None: whatever the others say, otherwise mse.
        options: fields of the settings that nothing else reads.
        needs: of the settings, besides the needs of its refinements.
        decides: what no other method may decide too, besides what its refinements decide.
    """

    summary: str = ""
    refinements: tuple[Refinement, ...] = ()
    over_network: tuple[NetworkRefinement, ...] = ()
    opening: tuple[Refinement, ...] = ()
    units: Units | None = None
    loss: str | None = None
    scales: bool = False
    options: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    decides: frozenset[str] = frozenset()

    @property
    def learns(self) -> bool:
        """Whether it reads calibration images beyond their ranges."""
        return bool(self.refinements or self.over_network)

    def trains(self, settings: Settings) -> bool:
        """Whether it takes steps of an optimizer."""
        return any(part.iterations(settings) for part in self._parts)

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """Its own and those of its refinements."""
        return (*self.needs, *chain.from_iterable(part.needs for part in self._parts))

    @property
    def all_decides(self) -> frozenset[str]:
        """What it and its refinements decide."""
        return self.decides.union(*(part.decides for part in self._parts))

    @property
    def _parts(self) -> tuple[Refinement | NetworkRefinement, ...]:
        return self.opening + self.refinements + self.over_network


METHODS: dict[str, Method] = {
    "rtn": Method("round to nearest", decides=frozenset({ROUNDING})),
    # OPTQ, arXiv 2210.17323
    "optq": Method(
        "alone, before a method that trains or behind it: codes of weights whose errors compensate "
        "each other",
        (CompensatedCodes(),),
        needs=(
            Need(
                lambda settings: "rtn" not in settings.method,
                "chooses other codes than the nearest; leave rtn out.",
            ),
        ),
    ),
    # AdaRound, arXiv 2004.10568
    "adaround": Method(
        "rounding of weights learned layer by layer",
        (Learned((Phase(weights=True, steps=False, drop=1.0),)),),
        units="layers",
    ),
    # BRECQ, arXiv 2102.05426
    "brecq": Method(
        "the same block by block, then activation steps",
        (
            Learned(
                (
                    Phase(weights=True, steps=False, drop=1.0),
                    Phase(weights=False, steps=True, drop=0.0, share=0.25),
                )
            ),
        ),
        units="blocks",
    ),
    # QDrop, arXiv 2203.05740
    "qdrop": Method(
        "both together, activations quantized or not at random",
        (Learned((Phase(weights=True, steps=True, drop=0.5),)),),
        units="blocks",
    ),
    # RAPQ, arXiv 2204.12322
    "rapq": Method(
        "as qdrop, from searched exponents of powers of two",
        (SearchedExponents(), Learned((Phase(weights=True, steps=True, drop=0.5),), start=0.5)),
        (NetworkExponents(),),
        units="blocks",
        loss="batch-norm lp",
        scales=True,
        options=("kappa",),
    ),
    # WAPS-Quant, IEEE Access 2025; a reading of its abstract
    "waps": Method(
        "with another method or alone: products scaled by shifts, group by group of input "
        "channels, which are sorted for it",
        (ScaledProducts(),),
        opening=(FactoredCodes(),),
        scales=True,
        options=("product_budget", "product_channels", "product_outputs"),
    ),
    # AQuant, arXiv 2208.11945; a reading of its abstract
    "aquant": Method(
        "with another method or alone: activations of at most 4 bits rounded by borders, a byte "
        "for each level of each channel",
        (Borders(),),
    ),
    "distill": Method(
        "behind another method or alone: all units learned together, the float network being the "
        "teacher",
        over_network=(LearnedTogether(),),
        options=("distill_iters",),
    ),
    "wess": Method(
        "one weight step per layer and a 4-bit shift per output channel, free on the NPU",
        needs=(
            Need(
                lambda settings: settings.granularity == "tensor",
                "is one step per layer and a shift per channel; use --granularity tensor. Steps "
                "per channel have no need of it.",
            ),
        ),
    ),
    "equalize": Method(
        "scale channels of consecutive layers by powers of two first, which leaves the float "
        "network the same",
        needs=(
            Need(
                lambda settings: "equalize" not in settings.method[1:],
                "changes the float network before anything is quantized; name it first.",
            ),
        ),
    ),
}
"""By the names of ``--method``. All but wess and equalize, which change what the planner starts
from, are what their refinements are."""


def learning(names: Iterable[str] = METHODS) -> tuple[str, ...]:
    """Those of the methods that learn from images."""
    return tuple(name for name in names if METHODS[name].learns)


def combined(names: Sequence[str]) -> Method:
    """Several methods as one: their refinements one behind the other, openings where they belong.

    Args:
        names: in METHODS, in the order in which they are applied; ``refusal`` has nothing to say.
    """
    chosen = [METHODS[name] for name in names]
    refinements: list[Refinement] = []
    for part in chain.from_iterable(method.refinements for method in chosen):
        if isinstance(part, Learned):
            refinements += chain.from_iterable(method.opening for method in chosen)
        refinements.append(part)
    return Method(
        refinements=tuple(refinements),
        over_network=tuple(chain.from_iterable(method.over_network for method in chosen)),
        units=next((method.units for method in chosen if method.units), None),
        loss=next((method.loss for method in chosen if method.loss), None),
        scales=any(method.scales for method in chosen),
    )


def refusal(settings: Settings) -> str:
    """Why the methods of settings do not go together, or not with the settings; "" if they do."""
    names = settings.method
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        return (
            f"method {', '.join(unknown) or 'is empty'}: not known; choose from "
            f"{', '.join(METHODS)}."
        )
    subjects = {subject for name in names for subject in METHODS[name].all_decides}
    for subject in sorted(subjects):
        rivals = [name for name in names if subject in METHODS[name].all_decides]
        if len(rivals) > 1:
            return f"method {', '.join(rivals)}: each of these decides {subject}; choose one."
    for what in ("units", "loss"):
        given = {name: value for name in names if (value := getattr(METHODS[name], what))}
        if len(set(given.values())) > 1:
            words = ", ".join(f"{name} ({value})" for name, value in given.items())
            return f"method {words}: these differ in the {what} they learn with; choose one."
    for name in names:
        for need in METHODS[name].all_needs:
            if not need.holds(settings):
                return f"method {name} {need.otherwise}"
    return ""
