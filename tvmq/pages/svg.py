"""Matplotlib figures as SVG text: the same figure gives the same bytes, on every machine.

Letters stay letters (``svg.fonttype: none``), so that names can be searched, copied and read aloud,
and a page stays small. Figures are laid out with DejaVu Sans, which comes with matplotlib and is
wider than what browsers use, so labels that fit here fit there.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.figure import Figure

INK = "#1f2733"
"""Text, axes and lines that belong to no data: in a page they take the colour of its text."""
_LOOK = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tvmq",  # names of clip paths and markers; random without it
    "path.simplify": False,  # every point that is given is drawn
    "text.parse_math": False,  # a "$" in a layer's name is a "$"
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@contextmanager
def drawing() -> Iterator[None]:
    """The look of our figures, whatever the user's matplotlibrc says; draw and save inside."""
    with style.context(["default", _LOOK]), warnings.catch_warnings():
        # Letters that DejaVu Sans lacks are the browser's to draw.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def svg_file(figure: Figure) -> str:
    """A file of its own, on white."""
    return ElementTree.tostring(_tree(figure, "white"), encoding="unicode") + "\n"


def svg_in_page(figure: Figure, label: str, titles: Mapping[str, str]) -> str:
    """An element of a page, in the page's colours.

    Args:
        figure: its artists may have group ids, digits only: the number of a row of the page, which
            becomes the attribute ``data-row``.
        label: what a screen reader says.
        titles: by group id, what shows under the pointer.
    """
    root = _tree(figure, "none")
    for name in ("width", "height"):  # the view box keeps the shape, the page sets the size
        del root.attrib[name]
    root.attrib.update({"role": "img", "aria-label": label})
    for element in root.iter():
        row = element.get("id", "")
        if row.isdigit():
            element.set("data-row", element.attrib.pop("id"))
            if row in titles:
                title = ElementTree.Element(f"{{{_SVG}}}title")
                title.text = titles[row]
                element.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")


def printable(text: str, longest: int | None = None) -> str:
    """Text that XML can hold, with its middle left out where it is longer than ``longest``."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if longest is None or len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def _tree(figure: Figure, background: str) -> ElementTree.Element:
    """What matplotlib writes, less its metadata, and what makes it long.

    Ids that nothing refers to go too: several figures share a page, where "figure_1" may stand only
    once. Ids that are referred to are hashes of what they name.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor=background, metadata={"Date": None})
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(file.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    referred = set(re.findall(rb"#(\w+)", file.getvalue()))
    for element in root.iter():
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
        if f"{{{_XLINK}}}href" in element.attrib:
            element.set("href", element.attrib.pop(f"{{{_XLINK}}}href"))
        for name in ("d", "x", "y", "width", "height", "transform"):
            if name in element.attrib:  # a hundredth of a point is less than anyone sees
                short = re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name])
                element.set(name, " ".join(short.split()))
        name = element.get("id", "")
        if name and not name.isdigit() and name.encode() not in referred:
            del element.attrib["id"]
    return root
