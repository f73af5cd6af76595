"""Integer networks that multiply tensors by each other: read, placed, executed, priced."""

import numpy as np
import pytest
from form_checks import module_of
from placed_modules import run_placed
from tvm import relax, tirx

from relay_passes.estimate import estimate
from relay_passes.forms.factor import Factor as FactorForm
from relay_passes.forms.product import Product, emit_product
from relay_passes.forms.quantization import Dequantize, Quantize, emit_dequantize, emit_quantize
from relay_passes.forms.requantize import Requantization, emit_requantization
from relay_passes.forms.table import Table, emit_table
from relay_passes.place import place, placements
from relay_passes.read_layers import OpaqueLayer, read_layers
from relay_passes.relax_nodes import shape_of
from targets.layers import Factor, Pairing
from targets.npu.kinds.kind import Rule
from targets.npu.kinds.table import plan
from targets.npu.machine.spec import load_spec
from targets.npu.schedule.job import Job
from targets.refusal import Refusal
from targets.rounding import FLOOR, HALF_UP
from targets.scale import Scale
from tvmq.run.reference import run_reference

N = tirx.Var("n", "int64")
SPEC = load_spec("e256")
ONE = np.array(1.0)
RNG = np.random.default_rng(0)


def _codes(emit, product, shift, dtype="int8", skip=None):
    """The sums of a product, rounded; the codes get the product's name."""
    scale = Scale(0, (1,), (shift,), 1, () if skip is None else (shift - 1,))
    limits = np.iinfo(dtype)
    rounding = HALF_UP if skip is None else FLOOR
    rounded = (0, int(limits.min), int(limits.max), dtype, rounding)
    sums, added = emit_product(emit, product), None if skip is None else (skip, 3)
    return emit_requantization(
        emit, Requantization(sums, scale, added, False, *rounded), product.node
    )


def _conv(emit, name, codes, channels, shift, dtype="int8"):
    weight = RNG.integers(-128, 128, (channels, 1, 1, shape_of(codes)[-1])).astype(np.int8)
    bias = RNG.integers(-99, 99, channels).astype(np.int32)
    return _codes(emit, Product(name, codes, weight, bias), shift, dtype)


def _product(name, x, r, pairing, channels, groups, zeros=(0, 0)):
    bias = np.zeros(channels, np.int32)
    factor = FactorForm(r, zeros[1], pairing)
    return Product(name, x, factor, bias, zero_point=zeros[0], groups=groups)


def _network(shape, write):
    """A network of float images whose integer part is ``write(emit, codes)``."""
    x = relax.Var("x", relax.TensorType((N, *shape), "float32"))

    def whole(emit):
        real = emit(relax.op.astype(x, "float64"))
        codes = emit_quantize(emit, Quantize(real, ONE, 0, 0, 255, "uint8", HALF_UP), "codes")
        real = emit_dequantize(emit, Dequantize(write(emit, codes), ONE, 0))
        return emit(relax.op.astype(real, "float32"))

    return module_of([x], whole)


def _attention(emit, x):
    """Three heads of 8 channels over 6 tokens; a table stands where softmax will."""
    q, k, v = (
        emit(relax.op.reshape(_conv(emit, f"{n}_image", x, 24, 9), (N, 6, 24)), n) for n in "qkv"
    )
    scores = _codes(emit, _product("scores", q, k, Pairing.ROWS, 18, 3), 6)
    table = emit_table(emit, Table(scores, np.arange(256, dtype=np.uint8)), "weights")
    product = _product("context", table, v, Pairing.COLUMNS, 24, 3)
    image = emit(relax.op.reshape(_codes(emit, product, 8), (N, 1, 6, 24)), "image")
    return _conv(emit, "y", image, 8, 8)


def _attention_off_centre(emit, x):
    """Queries and values whose zero points are not 0; keys without a sign."""
    q = emit(relax.op.reshape(_conv(emit, "q_image", x, 24, 9), (N, 6, 24)), "q")
    k = emit(relax.op.reshape(_conv(emit, "k_image", x, 24, 9, "uint8"), (N, 6, 24)), "k")
    v = emit(relax.op.reshape(_conv(emit, "v_image", x, 24, 9), (N, 6, 24)), "v")
    scores = _codes(emit, _product("scores", q, k, Pairing.ROWS, 18, 3), 6)
    turned = _codes(emit, _product("turned", scores, v, Pairing.COLUMNS, 24, 3, zeros=(90, 0)), 8)
    both = _codes(emit, _product("product", turned, v, Pairing.ROWS, 18, 3, zeros=(0, 2)), 8)
    image = emit(relax.op.reshape(both, (N, 1, 6, 18)), "image")
    return _conv(emit, "y", image, 8, 8)


def _gates(emit, x):
    """Squeeze and excitation joined by a residual, then a product of two images."""
    features = _conv(emit, "features", x, 16, 8, "uint8")
    taps, bias = np.ones((16, 2, 3, 1), np.int8), np.zeros(16, np.int32)
    pool = _codes(emit, Product("pool", features, taps, bias, groups=16), 2, "uint8")
    gate = _conv(emit, "gate", pool, 16, 8, "uint8")
    gated = _product("gated", features, gate, Pairing.ELEMENTS, 16, 16, zeros=(0, 128))
    gated = _codes(emit, gated, 7, skip=features)
    both = _product("both", features, gated, Pairing.ELEMENTS, 16, 16, zeros=(7, -3))
    return _conv(emit, "y", _codes(emit, both, 7), 8, 9)


def _with_a_token(emit, x):
    """A class token in front of the image's pixels."""
    held = relax.const(RNG.integers(0, 256, (1, 1, 1, 12)).astype(np.uint8))
    token = emit(relax.op.broadcast_to(held, relax.ShapeExpr([N, 1, 1, 12])), "token")
    joined = emit(relax.op.concat([token, x], axis=2), "joined")
    return _conv(emit, "y", joined, 8, 8)


NETWORKS = {
    "token": ((1, 6, 12), _with_a_token),
    "attention": ((1, 6, 12), _attention),
    "off_centre": ((1, 6, 12), _attention_off_centre),
    "gates": ((2, 3, 12), _gates),
}
MODULES = {name: _network(*network) for name, network in NETWORKS.items()}
READ = {name: read_layers(mod) for name, mod in MODULES.items()}
REFUSED = {
    "token": {},
    "attention": {},
    "off_centre": {
        "scores": (Rule.WEIGHTS, "'k' is uint8"),
        "turned": (Rule.WEIGHTS, "the zero point of 'scores' is 90"),
        "product": (Rule.WEIGHTS, "the zero point of 'v' is 2"),
    },
    "gates": {"gated": (Rule.ELEMENTS, "'features' is added to the products")},
}
"""Layers that the NPU does not take, with the rule and the fact."""


def _layer(name):
    return next(each for network in READ.values() for each in network.layers if each.name == name)


@pytest.mark.parametrize(
    ("name", "kind", "right", "zero_point", "groups", "macs", "max_sum"),
    [
        ("scores", "matmul", ("k", 0, Pairing.ROWS), 0, 3, 6 * 6 * 24, 8 * 128 * 128),
        ("context", "matmul", ("v", 0, Pairing.COLUMNS), 0, 3, 6 * 6 * 24, 6 * 255 * 128),
        ("gated", "multiply", ("gate", 128, Pairing.ELEMENTS), 0, 16, 96, 255 * 128),
        ("both", "multiply", ("gated", -3, Pairing.ELEMENTS), 7, 16, 96, 248 * 130),
    ],
)
def test_a_product_of_tensors_is_a_layer(name, kind, right, zero_point, groups, macs, max_sum):
    layer = _layer(name)
    assert isinstance(layer.right, Factor)
    assert (layer.right.value.name, layer.right.zero_point, layer.right.pairing) == right
    assert layer.right.value in layer.inputs
    assert (layer.kind, layer.input_zero_point, layer.groups) == (kind, zero_point, groups)
    assert (layer.macs, layer.max_sum) == (macs, max_sum)


def test_it_reads_its_residual_last():
    assert [value.name for value in _layer("gated").inputs] == ["features", "gate", "features"]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("spec", [SPEC, None], ids=["npu", "cpu"])
def test_answers_are_equal(name, spec):
    """The array multiplies matrices, the vector unit elements; the CPU what they refuse."""
    mod, network = MODULES[name], READ[name]
    placed = place(mod, network, spec)
    if spec is not None:
        on_cpu = {p.name: p.refusal for p in placed.placements if p.device == "cpu"}
        want = {
            n: Refusal(rule.value, rule.advice, fact) for n, (rule, fact) in REFUSED[name].items()
        }
        assert on_cpu == want
        assert len(placed.programs) == 1 + bool(want)
    shape = NETWORKS[name][0]
    images = np.random.default_rng(1).uniform(-50, 300, (3, *shape)).astype(np.float32)
    values = {}
    want = run_reference(mod, {"x": images}, values.setdefault)
    products = [each.name for each in network.layers if each.kind in ("matmul", "multiply")]
    assert all(values[layer].std() > 10 for layer in (*products, "y"))
    np.testing.assert_array_equal(run_placed(placed, spec, images), want)


@pytest.mark.parametrize("name", ["off_centre", "gates"])
def test_what_is_refused_is_priced_as_if_it_were_taken(name):
    network = READ[name]
    prices = estimate(network, placements(network, SPEC), SPEC)
    refused = 0
    for layer, price in zip(network.layers, prices, strict=True):
        if layer.name in REFUSED[name]:
            assert price.cycles == plan(Job.alone(layer, SPEC)).cost.cycles > 0
            refused += 1
    assert refused == len(REFUSED[name])


def test_what_is_only_like_a_product_stays_relax_with_its_reason():
    """A row times a column: neither has the shape of the result."""

    def outer(emit, x):
        row, column = (emit(relax.op.strided_slice(x, axes, [0], [1], [1])) for axes in ([1], [2]))
        product = _product("outer", row, column, Pairing.ELEMENTS, 12, 12)
        return _codes(emit, product, 8)

    mod = _network((2, 3, 12), outer)
    network = read_layers(mod)
    (opaque,) = (layer for layer in network.layers if isinstance(layer, OpaqueLayer))
    assert "broadcasts both of the tensors that it multiplies" in opaque.refusal.what
    placed = place(mod, network, SPEC)
    images = np.random.default_rng(1).uniform(-50, 300, (2, 2, 3, 12)).astype(np.float32)
    want = run_reference(mod, {"x": images})
    np.testing.assert_array_equal(run_placed(placed, SPEC, images), want)
