"""What is refused is refused in words: what, where and what to do, whoever refuses it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from targets.errors import UnsupportedError
from targets.refusal import Refusal, listed
from tvmq.capture.canonical_graph import as_refusal
from tvmq.capture.canonicalize import RULES
from tvmq.capture.capture import capture_program
from tvmq.capture.operators_without_rule import _ANSWERS, refusal_of

aten = torch.ops.aten
CAPTURE = Path(__file__).parents[3] / "tvmq" / "capture"
RULE_FILES = sorted([*CAPTURE.glob("*_rules.py"), CAPTURE / "canonicalize.py"])


@pytest.mark.parametrize("given", [("", "do this"), ("because", ""), ("because", "  ")])
def test_no_refusal_goes_without_a_reason_or_advice(given):
    with pytest.raises(ValueError, match="give both"):
        Refusal(*given)


def test_a_refusal_is_whole_sentences():
    assert str(Refusal("it is wide", "Narrow it")) == "it is wide. Narrow it."
    assert str(Refusal("it is wide.", "Narrow it.", "64")) == "it is wide. Here: 64. Narrow it."


def test_each_reason_is_listed_once():
    wide, tall = ("it is wide", "Narrow it"), ("it is tall", "Cut it")
    places = [(f"layer{i}", Refusal(*wide, f"{i} columns")) for i in range(8)]
    text = listed([*places, ("last", Refusal(*tall))])
    assert text.startswith("layer0: 0 columns; layer1: 1 columns; ")
    assert "layer4: 4 columns; and 3 more - it is wide. Narrow it. last - it is tall" in text
    assert text.count("it is wide") == 1


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.name)
def test_rules_raise_nothing_but_refusals(path):
    """A Refusal can't be made without advice; a bare error of another class could."""
    raised = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
    allowed = ("Refusal", "UnsupportedError", "refusal_of", "computed")
    makers = {
        function.name
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and function.returns is not None
        and ast.unparse(function.returns) in allowed
    }
    for node in raised:
        if node.exc is not None:
            assert isinstance(node.exc, ast.Call)
            assert ast.unparse(node.exc.func) in {*allowed, *makers}, ast.unparse(node)


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.name)
def test_errors_of_a_whole_network_end_in_advice(path):
    """Their text is one f-string: a sentence of what and where, then one of what to do."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "UnsupportedError":
            continue
        text = "".join(
            part.value
            for part in ast.walk(node.args[0])
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        )
        if "{refusal}" in ast.unparse(node) or "listed(" in ast.unparse(node):
            continue  # each of those has advice of its own
        assert ". " in text, ast.unparse(node)
        assert text.endswith("."), ast.unparse(node)


def overloads() -> list[torch._ops.OpOverload]:
    """All operators of torch's own that compute something."""
    found = []
    for name in dir(aten):
        packet = getattr(aten, name)
        if hasattr(packet, "overloads"):
            found += [getattr(packet, overload) for overload in packet.overloads()]
    return found


def test_every_operator_of_torch_has_an_answer():
    names = {str(op._schema.name).removeprefix("aten::") for op in overloads()}
    assert len(names) > 800
    for name in names - set(RULES):
        refusal = refusal_of(name)
        assert refusal.what
        assert refusal.advice
    assert refusal_of("log_softmax").what != refusal_of("trace").what


def test_what_has_a_rule_needs_no_answer():
    assert set(_ANSWERS) & set(RULES) <= {"softmax", "repeat", "max_pool2d_with_indices"}


class Attention(nn.Module):
    """Attention behind a normalization over all tokens, which has no rule."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm, self.qkv = nn.LayerNorm((16, 16)), nn.Linear(16, 48)

    def forward(self, x):
        y = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, 8).permute(0, 2, 3, 1, 4).unbind(1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_a_transformer_that_is_refused_is_so_by_its_operators():
    program = torch.export.export(Attention().eval(), (torch.randn(2, 3, 16, 16),))
    with pytest.raises(UnsupportedError) as error:
        capture_program(program)
    text = str(error.value)
    assert "aten.layer_norm.default (module norm" in text
    assert "normalizes over [16, 16]" in text
    assert "test_refusals.py:" in text
    assert "internal" not in text


def test_a_squeeze_of_one_image_names_the_axes():
    class Squeezed(nn.Module):
        def forward(self, x):
            return nn.functional.adaptive_avg_pool2d(x, 1).squeeze()

    program = torch.export.export(Squeezed(), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(UnsupportedError, match=r"Export with batch 2, or .*: squeeze\(\(2, 3\)\)"):
        capture_program(program)


def test_what_torch_says_of_its_arguments_is_no_fault_of_ours():
    refusal = as_refusal(RuntimeError("expected 4 axes\nat line 3"))
    assert refusal.here == "RuntimeError: expected 4 axes"
    assert "export it again" in refusal.advice


def test_a_place_is_found_for_nodes_that_lost_theirs():
    """Graph transformations leave nodes without a stack; the nearest place before them stands."""
    program = torch.export.export(Attention().eval(), (torch.randn(2, 3, 16, 16),))
    for node in program.graph.nodes:
        if "conv2d" not in node.name:
            node.meta.pop("nn_module_stack", None)
            node.meta.pop("stack_trace", None)
    with pytest.raises(UnsupportedError) as error:
        capture_program(program)
    assert "aten.layer_norm.default (behind module patches, test_refusals.py:" in str(error.value)
    assert "unknown place" not in str(error.value)


def refused(network, *shape):
    batch = torch.export.Dim("n")
    program = torch.export.export(
        network.eval(), (torch.randn(2, *shape),), dynamic_shapes=({0: batch},)
    )
    with pytest.raises(UnsupportedError) as error:
        capture_program(program)
    return str(error.value)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return torch.cumsum(self.conv(x), 2)


def test_what_is_behind_a_refused_operator_is_refused_with_it():
    text = refused(nn.Sequential(Summed(), Summed(), Summed()), 4, 16, 16)
    assert text.startswith("2 operators can't be quantized: aten.cumsum.default (module 0, test_")
    assert "; aten.cumsum.default (module 1, test_refusals.py:" in text
    assert "module 2" not in text  # which is the network's end


def test_the_state_that_torch_makes_for_an_lstm_is_no_reason_of_its_own():
    text = refused(nn.LSTM(8, 8, batch_first=True), 5, 8)
    assert "aten.lstm.input" in text
    assert "aten.zeros" not in text
