"""Every library is held against the reference, and the reference's outputs are kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from tvmq.run import verify as module
from tvmq.run.verify import verify

MODEL = SimpleNamespace(
    network_inputs=[SimpleNamespace(name="x")],
    network_outputs=[SimpleNamespace(name="y")],
    ends=None,
)


@pytest.mark.parametrize("wrong", ["model.so", "cpu.so", ""])
def test_one_other_bit_in_one_library_is_noticed(tmp_path, monkeypatch, wrong):
    right = np.arange(3, dtype=np.float32)
    other = np.nextafter(right, np.float32(9))
    monkeypatch.setattr(module, "ReferenceRunner", lambda *_: lambda _: [right])
    monkeypatch.setattr(
        module, "LibraryRunner", lambda path: lambda _: [other if path.name == wrong else right]
    )
    x = np.ones((3, 2), np.float32)
    assert verify(tmp_path, MODEL, {"x": x}) == (wrong == "")
    with np.load(tmp_path / "golden.npz") as golden:
        np.testing.assert_array_equal(golden["input.x"], x)
        np.testing.assert_array_equal(golden["output.y"], right)


@pytest.mark.parametrize("wrong", ["model.so", "cpu.so", ""])
def test_other_integers_are_noticed_where_the_tail_hides_them(tmp_path, monkeypatch, wrong):
    """An argmax of other sums may be the same class."""
    sums, other = np.float32([[1, 5, 2]]), np.float32([[1, 6, 2]])
    classes, passing = sums.argmax(1), np.float32([[7]])
    asked = []

    def library(path):
        def run(arrays, function="main"):
            asked.append((path.name, function, len(arrays)))
            results = {"head": [*arrays, passing], "main": [classes], "tail": [classes]}
            found = other if path.name == wrong else sums
            return results.get(function, [found])

        return run

    monkeypatch.setattr(module, "ReferenceRunner", lambda *_: lambda _: [sums])
    monkeypatch.setattr(module, "LibraryRunner", library)
    model = SimpleNamespace(
        **vars(MODEL) | {"ends": object()},
        inputs=[SimpleNamespace(name="h")],
        outputs=[SimpleNamespace(name="sums")],
    )
    assert verify(tmp_path, model, {"x": np.ones((1, 2), np.float32)}) == (wrong == "")
    assert ("cpu.so", "tail", 2) in asked  # the sums, and what passes by them
    with np.load(tmp_path / "golden.npz") as golden:
        np.testing.assert_array_equal(golden["integers.sums"], sums)
        np.testing.assert_array_equal(golden["output.y"], classes)
