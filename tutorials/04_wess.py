"""WESS: when one weight step per layer destroys a network, and how a shift per channel saves it.

    python tutorials/04_wess.py

Makes the channels of one depthwise layer of the digits network very different in size, without
changing what the network computes, and quantizes it per tensor, with WESS and per channel.
"""

# %% A layer whose channels differ
#
# MobileNets fail with one 8-bit weight step per layer. Not because their trained weights are
# strange: a batch norm divides each channel by its own spread, and where a channel's spread is
# tiny, folding that division into the weights makes them huge.
#
# Here is how that comes about, in the shipped digits network. Four of the 64 channels between a
# pointwise and a depthwise layer are made 2^-10 times as large. The depthwise layer makes up for
# it: 2^5 times in its weights, 2^5 times in its batch norm, which expects a smaller input. Between
# the two is a ReLU, which doesn't mind. The function of the network stays the same.

import warnings
from pathlib import Path

import torch

from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import price
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.capture.capture import capture
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.pages.range_plot import channel_ranges, write_range_plot
from tvmq.plan.plan_file import read_plan
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session
from tvmq.settings import Settings

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
OUT.mkdir(parents=True, exist_ok=True)
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself

program = torch.export.load(DIGITS / "digits.pt2")
parameters = {name: tensor.data for name, tensor in program.state_dict.items()}
size = torch.ones(64)
size[::16] = 2.0**-10
half = size.sqrt()  # 2^-5
EPSILON = 1e-5  # the batch norm adds it to its variance

parameters["layer3.0.pointwise.1.weight"].mul_(size)
parameters["layer3.0.pointwise.1.bias"].mul_(size)
parameters["layer3.1.depthwise.0.weight"].div_(half.reshape(-1, 1, 1, 1))
parameters["layer3.1.depthwise.1.running_mean"].mul_(half)
parameters["layer3.1.depthwise.1.running_var"].add_(EPSILON).mul_(half**2).sub_(EPSILON)
torch.export.save(program, OUT / "rescaled.pt2")

# %% What folding does to the ranges
#
# `tvmq inspect rescaled.pt2 --ranges ranges.svg` draws the same plot: a dot per channel, red where
# the whole channel rounds to zero with one 8-bit step per layer.


def spread(largest: torch.Tensor) -> float:
    """How many bits apart the largest and the smallest channel are."""
    return float(torch.log2(largest.max() / largest.min()))


trained = parameters["layer3.1.depthwise.0.weight"].flatten(1).abs().amax(dim=1)
model = capture(OUT / "rescaled.pt2")
ranges = channel_ranges(model)
(layer,) = (n for n in ranges if model.origins[n].module.startswith("layer3.1.depthwise"))
print(f"{layer} ({model.origins[layer]}): channels differ by 2^{spread(trained):.1f} before batch")
print(f"norms are folded, by 2^{spread(ranges[layer]):.1f} after; the plot is in {OUT}/ranges.svg")
write_range_plot(ranges, OUT / "ranges.svg")
assert spread(ranges[layer]) > spread(trained) + 4

# %% Four ways to quantize it
#
# "per tensor" has one step for all weights of a layer. "wess" too, but shifts each channel left by
# up to 15 bits first, so that it fills the codes, and right again when its sums become codes. "per
# channel" has a step for each channel. With power-of-two steps (pot) all of these are shifts; with
# free steps the sums are multiplied, and the vector unit of this machine does four of those in a
# cycle instead of sixteen.

WAYS = {
    "per tensor, pot": Settings(),
    "wess, pot": Settings(method=("wess",)),
    "wess, free": Settings(method=("wess",), scales="free"),
    "per channel, free": Settings(granularity="channel", scales="free"),
}
top1, cycles, sizes, multipliers = {}, {}, {}, {}
for name, settings in WAYS.items():
    folder = OUT / f"rescaled_{name.replace(', ', '_').replace(' ', '_')}.tvmq"
    request = BuildRequest(
        OUT / "rescaled.pt2",
        folder,
        settings=settings,
        calib_data=str(DIGITS / "digits_calib.npz"),
        preprocessing=Preprocessing(mean=(0.3,), std=(0.35,)),
    )
    artifact = Artifact.load(build(request).artifact)
    images = open_for(artifact, str(DIGITS / "digits_eval.npz"))
    if not top1:
        top1["float"] = evaluate(Session(artifact, "float"), images.batches(64)).top1
        print(f"{'float':18} top-1 {top1['float']:.4f}")
    top1[name] = evaluate(Session(artifact, "npu"), images.batches(64)).top1
    (npu_program,) = artifact.programs().values()
    cycles[name] = price(npu_program, load_spec("e256")).timeline.total
    sizes[name] = len(npu_program.to_bytes())
    plan = read_plan(artifact.path("plan.json"), model)
    multipliers[name] = len(set(plan.requantize[layer].multiplier) - {1})
    print(
        f"{name:18} top-1 {top1[name]:.4f}  {cycles[name]:,} cycles  {sizes[name]:,} bytes  "
        f"{multipliers[name]} multipliers in {layer}"
    )

# %% What it costs: nothing
#
# Per tensor falls apart. WESS does not, and its program takes the same cycles and the same bytes:
# the shift of a channel is a field of the record that each channel has anyway. With free steps it
# needs one multiplier for a layer where steps per channel need one for nearly every channel.

assert top1["per tensor, pot"] < 0.5
assert min(top1["wess, pot"], top1["wess, free"]) > top1["float"] - 0.02
assert abs(top1["wess, free"] - top1["per channel, free"]) < 0.01
assert cycles["wess, pot"] == cycles["per tensor, pot"]
assert sizes["wess, pot"] == sizes["per tensor, pot"]
assert cycles["wess, pot"] < cycles["per channel, free"]
assert multipliers["wess, pot"] == 0
assert multipliers["wess, free"] == 1
assert multipliers["per channel, free"] > 30

# %% The shifts
#
# They are in the plan, as steps that differ by powers of two.

plan = read_plan(OUT / "rescaled_wess_pot.tvmq" / "plan.json", model)
print(plan.weights[layer].reason)
shifts = torch.tensor(plan.requantize[layer].shift)
print(f"right shifts from {shifts.min()} to {shifts.max()}")
assert shifts.max() - shifts.min() >= 9
