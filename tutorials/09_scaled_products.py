"""WAPS: what two shifts per group of channels give back to weights of two bits.

    python tutorials/09_scaled_products.py

Quantizes the digits network to 2-bit weights with and without factors of products, follows one of
them from the plan to the instructions of the NPU, and counts what they cost.
"""

# %% Two builds
#
# With two bits a weight is one of four numbers. What a group of input channels adds to a sum then
# is too large or too small as a whole, and a factor for the group mends that: 1, or 1 plus or minus
# 2^-1, 2^-2, 2^-3 or 2^-4, which two shifts make. `--method waps` finds the factors by least
# squares, from the calibration images. Nothing is trained here, weights are rounded to nearest.

import json
import warnings
from collections import Counter
from pathlib import Path

from targets.npu.machine import isa
from targets.product_factors import FACTORS
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session
from tvmq.settings import Settings

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
OUT.mkdir(parents=True, exist_ok=True)
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself

WAYS = {
    "nearest": Settings(2, 4, "free", "channel"),
    "waps": Settings(2, 4, "free", "channel", method=("waps",), product_channels=16),
}
top1, artifacts = {}, {}
for name, settings in WAYS.items():
    request = BuildRequest(
        DIGITS / "digits.pt2",
        OUT / f"digits_{name}.tvmq",
        settings=settings,
        calib_data=str(DIGITS / "digits_calib.npz"),
        preprocessing=Preprocessing(mean=(0.3,), std=(0.35,)),
    )
    artifacts[name] = Artifact.load(build(request).artifact)  # fails if devices differ
    images = open_for(artifacts[name], str(DIGITS / "digits_eval.npz"))
    top1[name] = evaluate(Session(artifacts[name], "npu"), images.batches(64)).top1
    print(f"{name:8} top-1 {top1[name]:.4f}")
assert top1["waps"] > top1["nearest"]

# %% The plan
#
# Layers with factors say so: a row for so many output channels, a number for so many input ones.
# Units in which held-out images spoke against them have none. The order of channels is another one
# than in the model: those that want a like factor are neighbours.

plan = json.loads((artifacts["waps"].folder / "plan.json").read_text())
scaled = {name: layer["products"] for name, layer in plan["layers"].items() if "products" in layer}
for name, products in scaled.items():
    print(f"{name}: groups of {products['channels']}: {products['factors'][0]}")
used = {factor for products in scaled.values() for row in products["factors"] for factor in row}
assert used <= set(FACTORS)
assert plan["mixing"]["orders"]
print(plan["mixing"]["reason"])

# %% The program
#
# A GEMM shifts its products to the left, (P << (frac - alpha_a)) ± (P << (frac - alpha_b)), so that
# nothing is rounded. Each group of input channels is a GEMM with a factor.

shifts = {"nearest": Counter(), "waps": Counter()}
for name, counted in shifts.items():
    for program in artifacts[name].programs().values():
        for i in program.instructions:
            if isinstance(i, isa.Gemm):
                counted[i.alpha_a, i.alpha_b, i.alpha_sign] += 1
    print(f"{name:8} GEMMs by (alpha_a, alpha_b, alpha_sign): {dict(counted)}")
assert set(shifts["nearest"]) == {(0, 0, 0)}
assert len(shifts["waps"]) > 1

# %% What it costs
#
# By the count of operations, and on the modelled machine against the same plan with factors of 1.
# Groups of 16 are small for an array whose 16 rows take 32 products of 4 bits each: lanes are idle.
# With a budget instead of `product_channels` groups would be multiples of 32.

cost = artifacts["waps"].manifest.reconstruction["products"]
after, before = cost["with_factors"], cost["without"]
print(f"{cost['layers']} layers, {100 * cost['share']:.2f} % more operations")
for what in ("cycles", "dram_bytes", "picojoules"):
    print(f"{what}: {before[what]:,.0f} -> {after[what]:,.0f}")
assert cost["operations"] < 0.05 * cost["macs"]
assert after["cycles"] >= before["cycles"]
