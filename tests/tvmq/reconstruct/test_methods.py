"""One table of methods; what goes together follows from what refinements say of themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from targets.errors import InputError
from tvmq.reconstruct.losses import LOSSES
from tvmq.reconstruct.methods import METHODS, Method, combined, learning
from tvmq.reconstruct.refinement import POWERS_OF_TWO, ROUNDING, Need, Refinement
from tvmq.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"


class _Shift(Refinement):
    """Decides nothing that others decide."""

    name = "shift"
    needs = (Need(lambda settings: settings.weight_bits < 8, "is for few bits; use --precision."),)

    def propose(self, work):
        """Nothing."""


def test_every_loss_is_in_the_table():
    assert {method.loss for method in METHODS.values()} - {None} <= set(LOSSES)


def test_methods_that_learn():
    assert learning() == ("optq", "adaround", "brecq", "qdrop", "rapq", "waps", "aquant", "distill")
    assert learning(("wess", "rapq")) == ("rapq",)


@pytest.mark.parametrize(
    ("methods", "scales", "message"),
    [
        (("rapq", "rtn"), "pot", "method rapq, rtn: each of these decides how the weights are"),
        (("wess", "qdrop", "adaround"), "pot", "method qdrop, adaround: each of these decides"),
        (("rapq",), "free", "method rapq is about power-of-two steps"),
        (("rtn", "optq"), "pot", "method optq chooses other codes than the nearest; leave rtn out"),
        (("optq", "rapq"), "pot", "method optq, rapq: each of these decides codes that compensate"),
        (("wess", "equalize"), "pot", "method equalize changes the float network"),
        (("foo",), "pot", "method foo: not known; choose from rtn, optq, adaround"),
        ((), "pot", "method is empty: not known"),
    ],
)
def test_what_makes_no_sense_is_refused(methods, scales, message):
    with pytest.raises(InputError, match=message):
        Settings(method=methods, scales=scales)


def test_a_new_method_is_refused_for_what_its_refinements_say(monkeypatch):
    monkeypatch.setitem(METHODS, "shift", Method("of biases", (_Shift(),)))
    assert Settings(weight_bits=4, method=("wess", "rapq", "shift")).learned_method == "rapq,shift"
    with pytest.raises(InputError, match="method shift is for few bits; use --precision"):
        Settings(method=("qdrop", "shift"))
    monkeypatch.setitem(METHODS, "shift", Method("of biases", (_Shift(),), loss="mse"))
    with pytest.raises(InputError, match=r"rapq \(batch-norm lp\), shift \(mse\): .* the loss"):
        Settings(weight_bits=4, method=("rapq", "shift"))
    monkeypatch.setattr(_Shift, "decides", frozenset({ROUNDING}))
    with pytest.raises(InputError, match="method qdrop, shift: each of these decides how"):
        Settings(weight_bits=4, method=("qdrop", "shift"))


def test_several_methods_are_one_behind_the_other(monkeypatch):
    monkeypatch.setitem(METHODS, "shift", Method("of biases", (_Shift(),)))
    method, rapq = combined(("wess", "rapq", "shift")), METHODS["rapq"]
    assert [part.name for part in method.refinements] == ["compensated", "learned", "shift"]
    assert (method.units, method.loss) == ("blocks", "batch-norm lp")
    assert method.over_network == rapq.over_network
    assert POWERS_OF_TWO in method.all_needs


def test_an_opening_stands_before_what_trains():
    names = [part.name for part in combined(("rapq", "waps")).refinements]
    assert names == ["compensated", "factored codes", "learned", "scaled products"]
    names = [part.name for part in combined(("qdrop", "waps")).refinements]
    assert names == ["factored codes", "learned", "scaled products"]
    names = [part.name for part in combined(("optq", "qdrop", "waps")).refinements]
    assert names == ["compensated", "factored codes", "learned", "scaled products"]
    assert [part.name for part in combined(("waps",)).refinements] == ["scaled products"]
    names = [part.name for part in combined(("wess", "rapq", "waps", "aquant")).refinements]
    assert names == ["compensated", "factored codes", "learned", "scaled products", "borders"]


def test_the_documentation_knows_every_method():
    text = (DOCS / "reconstruction.md").read_text()
    assert all(f"| `{name}` |" in text for name in learning())
    assert f"--method {'|'.join(learning())}" in text


def test_reading_the_table_imports_no_torch():
    words = "import sys, tvmq.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
