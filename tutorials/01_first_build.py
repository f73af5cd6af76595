"""First build: from a trained model file to logits on the NPU, the CPU and the reference.

    python tutorials/01_first_build.py

Builds the digits network that the repository ships, runs the held-out images on every device, and
checks that all integer answers are equal, bit for bit. About 20 seconds.
"""

# %% The model and the data
#
# `digits.pt2` is a trained network, exported by torch.export: a residual network with a
# depthwise-separable tail that reads a 16 x 16 image of a digit. The two `.npz` files hold 8-bit
# images and labels: 256 that the network was trained on, for calibration, and 597 that it has
# never seen. How all of this was made is in `examples/digits/train.py`.

import warnings
from pathlib import Path

import numpy as np

from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself

# %% Build
#
# The same as
#
#     tvmq build --target npu --calib-data digits_calib.npz --mean 0.3 --std 0.35 \
#         -o digits.tvmq digits.pt2
#
# Mean and standard deviation are those of the training: a network that reads other numbers than it
# was trained on is not the network that you trained. They are kept in the artifact, so that
# nothing after this has to repeat them.

result = build(
    BuildRequest(
        DIGITS / "digits.pt2",
        OUT / "digits.tvmq",
        target="npu:e256",
        calib_data=str(DIGITS / "digits_calib.npz"),
        preprocessing=Preprocessing(mean=(0.3,), std=(0.35,)),
    )
)
for placement in result.placements:
    print(f"{placement.name:12} {placement.kind:18} {placement.device}  {placement.source}")

# %%
#
# Everything runs on the NPU. Where a layer does not, `placement.reason` is the rule of the machine
# that it breaks and the number that breaks it, and the layer runs on the CPU in the same integers.
#
# A build ends with a proof: the reference interpreter, the CPU build and the NPU's program are run
# on a few images, and their outputs are compared bit by bit.

assert all(placement.device == "npu" for placement in result.placements)
assert result.manifest.bit_exact

# %% The artifact
#
# What was built is a folder. `model.so` runs in a process that has `tvm` and `numpy` and nothing
# else; the other files are there to be read, by the other verbs and by you.

for path in sorted(result.artifact.iterdir()):
    print(path.name)

# %% Four devices
#
# npu        the encoded program, executed instruction by instruction by the simulated machine
# cpu        the same integers in CPU kernels, compiled by TVM
# reference  the same integers in a NumPy interpreter, a few lines per operator: the definition
# float      the network as it was before quantization, in torch

artifact = Artifact.load(result.artifact)
images = open_for(artifact, str(DIGITS / "digits_eval.npz"))
logits = {}
for device in ("npu", "cpu", "reference", "float"):
    session = Session(artifact, device)
    accuracy = evaluate(session, images.batches(64))
    outputs = [session.run(batch.inputs)["linear"] for batch in images.batches(64)]
    logits[device] = np.concatenate(outputs)
    print(f"{device:10} top-1 {accuracy.top1:.4f} of {accuracy.n} images")

# %% The promise
#
# The three integer answers are not close; they are equal, in all 597 x 10 logits. So the accuracy
# above, measured on whichever of them is the quickest, is the accuracy of the program.

assert np.array_equal(logits["npu"], logits["reference"])
assert np.array_equal(logits["cpu"], logits["reference"])

# %%
#
# The float network is another function, and quantization has its price. Here is that price:

error = np.abs(logits["npu"] - logits["float"])
print(f"8-bit logits are off by {error.mean():.4f} on average, by {error.max():.4f} at most")
assert 0 < error.mean() < 0.05

# %% One image, by hand
#
# A session takes float images as the network reads them. Pixels become such numbers with the
# preprocessing above: pixel / 255, minus the mean, divided by the standard deviation.

with np.load(DIGITS / "digits_eval.npz") as data:
    pixels, label = data["images"][0], int(data["labels"][0])
x = (pixels.astype(np.float32) / np.float32(255) - np.float32(0.3)) / np.float32(0.35)
answer = Session(artifact, "npu").run({"x": x.transpose(2, 0, 1)[None]})["linear"]
print(f"the first image is a {label}, the NPU says {answer.argmax()}")
assert answer.argmax() == label

# %%
#
# The artifact is still there: try `tvmq inspect out/tutorials/digits.tvmq`.
