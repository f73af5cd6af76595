"""A profile as one page: summary, roofline, timeline, table. Needs no network and no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from targets.npu.price.stalls import CLASSES
from tvmq.profile.plots import BOUND_COLOURS, roofline, timeline
from tvmq.profile.profile import OperatorProfile, Profile
from tvmq.profile.reconstruction_html import reconstruction_section
from tvmq.profile.table import operator_table, summary

CLASS_COLOURS = dict(
    zip(
        CLASSES,
        (
            *("#2b6cb0", "#90cdf4", "#ecc94b", "#dd6b20", "#f6ad55", "#b7791f"),
            *("#e53e3e", "#9b2c2c", "#b794f4", "#38a169", "#000000", "#e2e8f0"),
        ),
        strict=True,
    )
)

_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em auto; max-width: 1200px; color: #1a202c; }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
svg { width: 100%; max-width: 1000px } svg text { font-size: 11px; fill: #4a5568 }
svg line { stroke: #a0aec0 } .grid { stroke: #edf2f7 }
.roof { fill: none; stroke: #718096; stroke-width: 1.5 }
.band { fill: #fff } .band.odd { fill: #f0f4f8 } .work { fill: #2b6cb0 } .overhead { fill: #bee3f8 }
.work, .overhead { pointer-events: none }
rect.chosen { fill: #fefcbf } circle.chosen { stroke: #000; stroke-width: 3 }
tr.chosen td { background: #fefcbf }
table { border-collapse: collapse; width: 100%; font-size: 12px }
th, td { padding: 3px 8px; text-align: left; border-bottom: 1px solid #edf2f7 }
th { cursor: pointer; position: sticky; top: 0; background: #fff }
.number { text-align: right; font-variant-numeric: tabular-nums }
.stack { display: flex; width: 160px; height: 10px } .stack i { height: 10px }
.key i { display: inline-block; width: 10px; height: 10px; margin: 0 4px 0 12px }
"""

_SCRIPT = """
const marked = name => document.querySelectorAll(`[data-layer="${CSS.escape(name)}"]`);
for (const item of document.querySelectorAll("[data-layer]")) {
  const mark = on => marked(item.dataset.layer).forEach(e => e.classList.toggle("chosen", on));
  item.addEventListener("mouseenter", () => mark(true));
  item.addEventListener("mouseleave", () => mark(false));
}
document.querySelectorAll("th").forEach(head => {
  const column = head.cellIndex;
  let down = false;
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const key = row => {
      const text = row.cells[column].dataset.key ?? row.cells[column].textContent;
      const number = parseFloat(text.replaceAll(",", ""));
      return head.className === "number" ? (isNaN(number) ? -1 : number) : text;
    };
    down = !down;
    [...body.rows]
      .sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (down ? -1 : 1))
      .forEach(row => body.append(row));
  });
});
"""


def to_html(profile: Profile) -> str:
    """The page's text."""
    return "\n".join(_page(profile))


def _page(profile: Profile) -> Iterator[str]:
    title = f"{profile.artifact} for {profile.target}"
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield f"<title>{escape(title)}</title>"
    yield f"<style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(title)}</h1>"
    yield from (f"<p>{escape(line)}</p>" for line in summary(profile))
    plot, run = roofline(profile), timeline(profile)
    if plot:
        yield "<h2>Roofline</h2>"
        yield _key(BOUND_COLOURS)
        yield plot
    if run:
        yield "<h2>Units over time</h2>"
        yield _key(
            {"works": "#2b6cb0", "pays for working (decode, weights, bus, latency)": "#bee3f8"}
        )
        yield run
    yield "<h2>Operators</h2>"
    if run:
        yield f"<p>Cycles of the MAC array: {_key(CLASS_COLOURS)}</p>"
    yield from _table(profile)
    yield from reconstruction_section(profile.reconstruction)
    yield f"<script>{_SCRIPT}</script></body></html>"


def _table(profile: Profile) -> Iterator[str]:
    table = operator_table(profile)
    styles = ['class="number"' if name in table.numbers else "" for name in table.headings]
    heads = zip(table.headings, styles, strict=True)
    yield "<table><thead><tr>"
    yield "".join(f"<th {style}>{escape(name)}</th>" for name, style in heads)
    yield "<th>MAC array</th></tr></thead><tbody>"
    for row, cells in zip(profile.operators, table.rows, strict=True):
        yield f'<tr data-layer="{escape(row.name)}">'
        columns = zip(cells, styles, strict=True)
        yield "".join(f"<td {style}>{escape(cell)}</td>" for cell, style in columns)
        yield f"<td>{_stack(row)}</td></tr>"
    yield "</tbody></table>"


def _stack(row: OperatorProfile) -> str:
    """A bar of the array's cycles by class."""
    if not row.cycles:
        return ""
    bars = "".join(
        f'<i style="width:{100 * cycles / row.cycles:.2f}%;background:{CLASS_COLOURS[kind]}" '
        f'title="{kind}: {cycles:,}"></i>'
        for kind, cycles in row.stalls["MM"].items()
    )
    return f'<div class="stack">{bars}</div>'


def _key(colours: dict[str, str]) -> str:
    items = (
        f'<i style="background:{colour}"></i>{escape(name)}' for name, colour in colours.items()
    )
    return f'<span class="key">{"".join(items)}</span>'
