"""Small networks annotated by hand, and the three ways to run them."""

import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
import tvm
from torch import nn
from tvm import relax
from unoptimized import LLVM

import tvmq.plan.fake_quantize  # noqa: F401  registers the operator
from targets.scale import nearest_multiplier


def quantize(x, step, zero_point=0, low=0, high=255, dtype="uint8", axis=-1, rounding="HALF_UP"):
    return torch.ops.tvmq.fake_quantize(x, step, zero_point, low, high, axis, dtype, rounding)


def snapped(rng, source, target, channels, free):
    """Weight steps [K] for which source * step / target is M / 2**s."""
    if not free:
        return torch.tensor(2.0 ** rng.integers(-9, -6, channels))
    multiplier = rng.integers(2**15, 2**16, channels)
    return torch.tensor(multiplier / 2.0**24 * float(target) / float(source))


class Layer(nn.Module):
    """Weight, bias and steps of one product, all float64."""

    def __init__(self, rng, shape, source, target, free, per_channel=True):
        super().__init__()
        K = shape[0]
        steps = snapped(rng, source, target, K if per_channel else 1, free)
        self.weight = nn.Buffer(
            torch.tensor(rng.integers(-100, 101, shape))
            * torch.as_tensor(steps).reshape([-1] + [1] * (len(shape) - 1))
        )
        self.step = nn.Buffer(steps)
        self.bias = nn.Buffer(torch.tensor(rng.integers(-900, 901, K)) * (source * steps))

    def quantized(self):
        axis = 0 if self.step.numel() > 1 else -1
        return quantize(self.weight, self.step, 0, -128, 127, "int8", axis)


class Average(nn.Module):
    """Average pooling as annotation writes it: a depthwise convolution with weights of one code."""

    def __init__(self, channels, kernel, source, target):
        super().__init__()
        self.channels, self.kernel = channels, kernel
        ratio = Fraction(float(source)) / Fraction(float(target)) / math.prod(kernel)
        multiplier, shift = nearest_multiplier(ratio)
        factor = multiplier / 2.0**shift * float(target) / float(source)
        self.step = nn.Buffer(torch.tensor([factor], dtype=torch.float64))
        self.weight = nn.Buffer(torch.ones((channels, 1, *kernel), dtype=torch.float64) * factor)

    def forward(self, x):
        weight = quantize(self.weight, self.step, 0, -127, 127, "int8")
        return F.conv2d(x, weight, None, self.kernel, groups=self.channels)


class Residual(nn.Module):
    """conv, relu, conv + residual, relu, max pool, average, linear: one path through it all."""

    def __init__(self, free=False, seed=0, zero_point=9):
        super().__init__()
        rng = np.random.default_rng(seed)
        base = 1.0 if not free else 0.9173
        names = ("x", "a", "b", "p")
        for name, exponent in zip(names, (-5, -3, -3, -4), strict=True):
            step = torch.tensor([base * 2.0**exponent], dtype=torch.float64)
            self.register_buffer(f"s_{name}", step)
        self.zero_point = zero_point
        self.one = Layer(rng, (8, 3, 3, 3), self.s_x, self.s_a, free)
        self.two = Layer(rng, (8, 4, 3, 3), self.s_a, self.s_b, free)
        self.mean = Average(8, (3, 5), self.s_b, self.s_p)
        self.head = Layer(rng, (5, 8), self.s_p, self.s_p, free, per_channel=False)

    def forward(self, x):
        one, two, head = self.one, self.two, self.head
        x = quantize(x, self.s_x, self.zero_point, -128, 127, "int8")
        a = F.conv2d(x, one.quantized(), one.bias, stride=(2, 1), padding=1)
        a = quantize(torch.relu(a), self.s_a)
        b = F.conv2d(a, two.quantized(), two.bias, padding=1, groups=2)
        b = quantize(torch.relu(a + b), self.s_b)
        p = F.max_pool2d(b, 3, 2, 1)
        p = quantize(self.mean(p), self.s_p)
        return F.linear(p.reshape([-1, 8]), head.quantized(), head.bias)


def export(module, *shapes):
    """The graph module of a float64 export for any batch, in the form that ``annotate`` makes."""
    examples = tuple(torch.zeros((2, *shape), dtype=torch.float64) for shape in shapes)
    return graph_of(module.eval().double(), *examples)


def graph_of(module, *examples):
    dynamic = ({0: torch.export.Dim("batch")},) * len(examples)
    graph_module = torch.export.export(module, examples, dynamic_shapes=dynamic).module()
    for node in graph_module.graph.find_nodes(op="call_module"):  # checks of the inputs
        graph_module.graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def run_torch(program, *arrays):
    with torch.no_grad():
        result = program(*(torch.tensor(a, dtype=torch.float64) for a in arrays))
    results = result if isinstance(result, (tuple, list)) else (result,)
    return [r.numpy().astype(np.float32) for r in results]


def run_tvm(mod, *arrays):
    vm = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    return [r.numpy() for r in vm["main"](*(tvm.runtime.tensor(a) for a in arrays))]


def image(shape, seed=0, scale=1.5):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)
