"""The results of benchmarks/reconstruction.py, and their table in Markdown.

    python benchmarks/reconstruction_table.py FILE [--iters N]

A cell is the mean top-1 in percent and its sample standard deviation; in brackets the number of
seeds where it isn't three.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets.whole_files import whole_file

PRECISIONS = ("w4a8", "w4a4", "w3a3", "w2a4", "w2a2")
POT_METHODS = ("rtn", "nearest", "adaround", "brecq", "qdrop", "unscaled", "rapq", "rapq,aquant")
FREE_METHODS = ("rtn", "adaround", "brecq", "qdrop", "asymmetric", "qdrop,aquant")


def main() -> None:
    """Print the table of runs with so many iterations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--iters", type=int, default=2000)
    options = parser.parse_args()
    print("\n".join(table(read(options.results), options.iters)))


def read(results: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return list(json.loads(results.read_text())) if results.is_file() else []


def write(results: Path, facts: list[dict[str, Any]]) -> None:
    """Replace the results; a reader never sees half a file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(results) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())


def find(facts: list[dict[str, Any]], name: str, seed: int, iterations: int) -> bool:
    """Whether a run is among them; rounding to nearest has no iterations."""
    wanted = (name, seed, 0 if name.endswith("-rtn") else iterations)
    return any((fact["name"], fact["seed"], fact["iterations"]) == wanted for fact in facts)


def table(every: list[dict[str, Any]], iterations: int) -> Iterator[str]:
    """A line per method and kind of step, a column per precision."""
    facts = [fact for fact in every if fact["iterations"] in (0, iterations)]
    yield f"| method | steps | {' | '.join(PRECISIONS)} |"
    yield "|---|---|" + "---|" * len(PRECISIONS)
    for scales, methods in (("free", FREE_METHODS), ("pot", POT_METHODS)):
        for method in methods:
            cells = [_cell(facts, f"{bits}-{scales}-{method}") for bits in PRECISIONS]
            if any(cells):
                yield f"| {method} | {scales} | {' | '.join(cells)} |"
    gains = [
        100 * (fact["top1"] - fact["top1_before_moves"])
        for fact in facts
        if fact.get("moves") and "top1_before_moves" in fact
    ]
    if gains:
        yield ""
        yield (
            f"RAPQ's pass over the whole network moved exponents in {len(gains)} runs: "
            f"{statistics.mean(gains):+.2f} points on average, {min(gains):+.2f} to "
            f"{max(gains):+.2f}."
        )


def _cell(facts: list[dict[str, Any]], name: str) -> str:
    top1 = [100 * fact["top1"] for fact in facts if fact["name"] == name]
    if not top1:
        return ""
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    return f"{statistics.mean(top1):.2f}{spread}" + (f" ({len(top1)})" if len(top1) != 3 else "")


if __name__ == "__main__":
    main()
