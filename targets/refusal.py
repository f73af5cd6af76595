"""Why something of a network can't be done as it stands, and what to do about it.

Every stage makes its refusals of this one class: a rule of capture raises it, a reader of layers
and the constraints of a machine return it. Whoever knows the places collects them with ``listed``,
which says each reason once.
"""

from __future__ import annotations

from collections.abc import Iterable

_PLACES = 5
"""Places that a reason is listed with; more say nothing new."""


class Refusal(Exception):  # noqa: N818 - no error: it is collected, with others, into one
    """One operator or layer that is refused.

    Attributes:
        what: why, as it holds for all of its kind.
        advice: what to do.
        here: what about this one; "" where ``what`` says it all.
    """

    def __init__(self, what: str, advice: str, here: str = "") -> None:
        if not what.strip() or not advice.strip():
            raise ValueError(f"refused because of {what!r}, with the advice {advice!r}; give both")
        super().__init__(what, advice, here)
        self.what, self.advice, self.here = what, advice, here

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refusal) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)

    def __str__(self) -> str:
        here = f"Here: {self.here}" if self.here else ""
        return " ".join(_sentence(text) for text in (self.what, here, self.advice) if text)


def listed(refused: Iterable[tuple[str, Refusal]]) -> str:
    """What was refused, in one line: ``by_reason``, one after the other."""
    return " ".join(by_reason(refused))


def by_reason(refused: Iterable[tuple[str, Refusal]]) -> list[str]:
    """A line for each reason, behind the places that it holds for.

    Args:
        refused: where, and why; in order.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for place, refusal in refused:
        here = f": {refusal.here.rstrip('.')}" if refusal.here else ""
        groups.setdefault((refusal.what, refusal.advice), []).append(f"{place}{here}")
    return [
        f"{_few(places)} - {_sentence(what)} {_sentence(advice)}"
        for (what, advice), places in groups.items()
    ]


def _few(places: list[str]) -> str:
    more = len(places) - _PLACES
    return "; ".join(places[:_PLACES]) + (f"; and {more} more" if more > 0 else "")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
