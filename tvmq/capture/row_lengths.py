"""How many numbers can be normalized together; longer rows may only stay in float."""

from __future__ import annotations

from targets.refusal import Refusal


def check_row(count: int, longest: int) -> None:
    """Refuse a row of more numbers than its sums have room for.

    Args:
        count: numbers that are normalized together.
        longest: that can be.

    Raises:
        Refusal: there are more.
    """
    if count > longest:
        raise Refusal(
            f"at most {longest} numbers can be normalized together",
            "Normalize smaller groups, such as the channels of each pixel, or smaller images",
            f"{count}",
        )
