"""Profiles made up for the tests of pages, and a reader of pages."""

from __future__ import annotations

from fractions import Fraction
from html.parser import HTMLParser

from targets.npu.machine.isa import UNIT_NAMES
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import LayerCost, PricedProgram
from targets.npu.price.stalls import Span
from targets.npu.price.timeline import Timeline
from tvmq.profile.profile import OperatorProfile, Profile

CYCLES = 100
STALLS = {"MM": {"work": 60, "LD": 40}}
EVIL = "<script>alert(1)</script> & $x^2$ \"'層\x07"


def operator(name, device="npu", **values):
    npu = {"cycles": CYCLES, "us": 0.1, "macs": 8000, "bytes": 640, "utilization": 0.3}
    npu |= {"bound": "DMA", "reason": "", "energy_pj": 5e6, "stalls": STALLS}
    cpu = {"cycles": 0, "us": 7.0, "macs": 10, "bytes": 0, "utilization": 0.0}
    cpu |= {"bound": "host", "reason": "no such instruction"}
    fields = {"layer": f"module {name}", "op": "conv2d", **(npu if device == "npu" else cpu)}
    return OperatorProfile(name=name, device=device, **{**fields, **values})


def profile_of(operators):
    """One whose layers on the NPU stand in a row; every unit works in the first half of each."""
    costs, spans, begin = [], [], 0
    for row in operators:
        if row.cycles:
            window = (begin, begin + CYCLES)
            lanes = (0.3, 0.5, 0.6, "8 output channels meet 16 columns")
            traffic = ((), 0, 0, row.macs, row.bytes)
            costs.append(LayerCost(row.name, *window, *traffic, *lanes, "", 1.0))
            spans += [Span(begin, begin + 50, "work"), Span(begin + 50, begin + CYCLES, "LD")]
            begin += CYCLES
    units = (tuple(spans),) * len(UNIT_NAMES)
    priced = PricedProgram(None, Timeline(begin, (), ()), units, tuple(costs), Fraction(begin))
    programs, spec, energy = {}, None, ""
    if begin:
        programs, spec, energy = {"program_0.bin": priced}, load_spec("e256"), "horowitz45"
    return Profile("a.tvmq", "npu", begin, 1.0, 0.3, energy, tuple(operators), spec, programs)


class Page(HTMLParser):
    """Tags that are still open, what they refer to, the text of cells and of scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.cells, self.scripts = [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.scripts += tag == "script"
        self.cells += [""] * (tag == "td")
        self.open += [tag] * (tag != "meta")

    def handle_startendtag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "td" in self.open:
            self.cells[-1] += text
