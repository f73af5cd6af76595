"""Read and edit a plan: precision, granularity, steps, and the integers that follow from them.

    python tutorials/02_read_and_edit_a_plan.py

Makes plans of the digits network with several settings, reads what they say, changes one step by
hand and builds from the changed file. About 20 seconds.
"""

# %% From a network and images to a plan
#
# A plan says how every tensor of a network is written in integers. It needs the float network and
# what calibration saw of its activations; both are made once here and used for several plans.

import json
import math
import warnings
from pathlib import Path

from targets.errors import InputError
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.plan.plan_file import plan_from_json, plan_to_json, read_plan, write_plan
from tvmq.plan.planner import make_plan
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session
from tvmq.settings import Settings

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
IMAGES = Preprocessing(mean=(0.3,), std=(0.35,))

model = capture(DIGITS / "digits.pt2")
data = open_data(str(DIGITS / "digits_calib.npz"), model.inputs, IMAGES)
batches = [batch.inputs for batch in data.samples(128, 64, seed=0)]
calibration = calibrate(model, batches, samples=128)

# %% Values: steps, zero points, reasons
#
# A tensor x is held in codes: x = step * (code - zero_point). With the default settings, w8a8 and
# scales "pot", every step is a power of two. Behind a ReLU nothing is negative, so codes are
# unsigned; the reason says what was seen and how much of it lies beyond the codes.

plan = make_plan(model, calibration, Settings())
for name, value in plan.values.items():
    print(f"{name:11} {value.dtype:5} step 2^{math.log2(value.step):.0f}  {value.reason}")
assert plan.values["relu"].dtype == "uint8"
assert plan.values["conv2d_4"].dtype == "int8"

# %%
#
# Not every node has a value of its own. `conv2d_2` is added to the shortcut inside its accumulator
# and rounded once, behind the ReLU, as `relu_2`; what a batch norm did is in the weights.

assert "conv2d_2" not in plan.values

# %% Layers: weights, the integers that follow, and the proof
#
# From three steps (of what is read, of the weights, of what is made) follow the integers with which
# the machine turns sums into codes:
#
#     t = ((sums + bias) << fraction) * multiplier + residual
#     y = clamp(((t + half) >> shift) + zero_point, low, high)         half = 2^(shift - 1)
#
# With powers of two the multiplier is 1 and `shift` is the difference of exponents.

relu, relu_1 = plan.values["relu"].step, plan.values["relu_1"].step
(weight,) = plan.weights["conv2d_1"].steps
(shift,) = plan.requantize["conv2d_1"].shift
print(f"conv2d_1: {relu} * {weight} / {relu_1} = 1 / {2**shift}")
assert relu * weight / relu_1 == 2.0**-shift

# %%
#
# Sums must fit int32, and that is proved, not hoped: from the weights themselves and the range of
# the codes follows a bound that no image can exceed.

for name, proof in plan.proofs.items():
    print(f"{name:11} |sum| <= {proof.total:>9,} of {proof.limit:,}")
    assert proof.total <= proof.limit

# %% Granularity and free steps
#
# With scales "free" a step is any number, and the ratio of steps becomes a 16-bit multiplier over a
# power of two. With granularity "channel" every output channel has its own weight step. Free steps
# are moved minutely, by less than 2^-16 of themselves, until the ratio is *exactly* that fraction:
# the real-valued network and the integer one are then the same function.

free = make_plan(model, calibration, Settings(scales="free", granularity="channel"))
requantize = free.requantize["conv2d_1"]
print(f"conv2d_1, first channels: {requantize.multiplier[:3]} / 2^{requantize.shift[:3]}")
assert len(free.weights["conv2d_1"].steps) == 16
assert all(2**15 <= m < 2**16 for m in requantize.multiplier)

# %% Fewer bits
#
# w4a4 halves the bits of everything but the first and the last layer, which keep 8 unless
# `first_last_bits` says otherwise.

small = make_plan(model, calibration, Settings(weight_bits=4, activation_bits=4))
print({name: layer.bits for name, layer in small.weights.items()})
assert small.weights["conv2d"].bits == small.weights["linear"].bits == 8
assert small.weights["conv2d_1"].bits == 4

# %% The plan file
#
# `tvmq build` leaves the plan in the artifact as plan.json, and `tvmq build --plan FILE` builds
# from one. What you may change: steps, zero points, types, bits and bias corrections. What stands
# under "derived" follows from them and is worked out anew, with the proof, when the file is read.

OUT.mkdir(parents=True, exist_ok=True)
path = OUT / "plan.json"
write_plan(plan, path)
document = json.loads(path.read_text())
print(json.dumps(document["values"]["relu_3"], indent=2))

# %%
#
# Let us make the step of `relu_3` four times finer. Its codes then end at 255/128, below 2, and
# what is larger is clipped.

document["values"]["relu_3"]["step"] = "2^-7"
document["values"]["relu_3"]["reason"] = "by hand: finer, to see what clipping costs"
path.write_text(json.dumps(document))
edited = read_plan(path, model)
before, after = (p.requantize["conv2d_3"].shift for p in (plan, edited))
print(f"conv2d_3, which makes relu_3, shifts by {after[0]} instead of {before[0]}")
assert after[0] == before[0] - 2

# %%
#
# A wrong entry is refused by its name, not rounded to something that works.

document["values"]["relu_3"]["step"] = 0.03
try:
    plan_from_json(json.dumps(document), model, "plan.json")
except InputError as error:
    print(error)
else:
    raise AssertionError("0.03 is no power of two")

# %% Build from it
#
# On the command line:
#
#     tvmq build --plan plan.json --mean 0.3 --std 0.35 -o edited.tvmq digits.pt2
#
# No images are needed: what calibration would say is in the plan.

result = build(
    BuildRequest(DIGITS / "digits.pt2", OUT / "edited.tvmq", plan=path, preprocessing=IMAGES)
)
artifact = Artifact.load(result.artifact)
assert plan_to_json(edited) + "\n" == artifact.path("plan.json").read_text()

evaluation = open_for(artifact, str(DIGITS / "digits_eval.npz"))
for device in ("float", "npu"):
    accuracy = evaluate(Session(artifact, device), evaluation.batches(64))
    print(f"{device:6} top-1 {accuracy.top1:.4f}")

# %%
#
# Whatever the plan says, the devices agree on it. A bad plan costs accuracy, never bit-exactness.

assert result.manifest.bit_exact
