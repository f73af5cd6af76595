"""A detector whose boxes are decoded in the network: the float end of an integer network.

    python tutorials/08_detector_with_decoding.py

Trains a small detector on scenes of the shipped digits, builds it with its decoding inside, looks
at where the integers end, and measures how well it finds the digits. About 30 seconds.
"""

# %% Scenes, and the boxes in each
#
# Two digits of 16 × 16 pixels in an image of 40 × 40. A digit's box is what is lit of it.

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.labels import Labelling
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.profile.profile import profile
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
OUT.mkdir(parents=True, exist_ok=True)
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
SIZE, STRIDE, REACH, MOST = 40, 4, 8, 6
CELLS = SIZE // STRIDE
HOW = Preprocessing(mean=(0.3,), std=(0.35,))


def scenes(part: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8[N, H, W, 1], and in each two boxes, float32[N, 2, 4] as x1, y1, x2, y2."""
    digits = np.load(DIGITS / f"digits_{part}.npz")["images"][..., 0]
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 40, (count, SIZE, SIZE, 1), np.uint8)
    boxes = np.zeros((count, 2, 4), np.float32)
    for image, found in zip(images, boxes, strict=True):
        for side, box in enumerate(found):
            digit = digits[generator.integers(len(digits))]
            x, y = 4 + 16 * side + generator.integers(-4, 4), generator.integers(0, SIZE - 16)
            image[y : y + 16, x : x + 16, 0] = np.maximum(image[y : y + 16, x : x + 16, 0], digit)
            rows, columns = (np.flatnonzero((digit > 90).any(axis)) for axis in (1, 0))
            box[:] = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
    return images, boxes


# %% The detector
#
# For every cell of 4 × 4 pixels a score, and for each of the four sides of a box how far away it
# is, as a distribution over 0 to 7 cells: a softmax, and the expectation of it, which is how YOLO
# has it since version 8. Then the cell's middle is added, neighbours that are less sure are left
# out, and the best six boxes are returned. None of that is anything for 8 bits: a step of the
# coordinates would be a third of a pixel, and of two boxes that are equal to a step one is chosen.


class Detector(nn.Module):
    """Boxes [N, 6, 4] in pixels and their scores [N, 6], the best first."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 16, 2), (16, 32, 2), (32, 48, 1), (48, 48, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.scores, self.sides = nn.Conv2d(48, 1, 1), nn.Conv2d(48, 4 * REACH, 1)
        self.expectation = nn.Conv2d(REACH, 1, 1, bias=False).requires_grad_(False)
        self.expectation.weight[:] = torch.arange(float(REACH)).reshape(1, REACH, 1, 1)

    def dense(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all cells, scores [N, cells] and boxes [N, 4, cells]."""
        x = self.body(x)
        sides = self.sides(x).reshape(x.shape[0], 4, REACH, -1).transpose(1, 2).softmax(1)
        near, far = self.expectation(sides).reshape(x.shape[0], 4, -1).chunk(2, 1)
        steps = torch.arange(CELLS) + 0.5
        middle = torch.stack(torch.meshgrid(steps, steps, indexing="xy")).reshape(1, 2, -1)
        return self.scores(x), torch.cat([middle - near, middle + far], 1) * STRIDE

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, boxes = self.dense(x)
        best = nn.functional.max_pool2d(logits, 3, 1, 1)
        scores = torch.where(logits == best, logits.sigmoid(), torch.zeros_like(logits)).flatten(1)
        top, cells = scores.topk(MOST, 1)
        chosen = boxes.gather(2, cells[:, None].expand(-1, 4, -1))
        return {"boxes": chosen.transpose(1, 2), "scores": top}


def loss_of(logits: torch.Tensor, found: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cross entropy of all scores, and the distance of the boxes where a digit's middle is."""
    middles = ((boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE).long()
    cells = middles[..., 1] * CELLS + middles[..., 0]
    wanted = torch.zeros(len(boxes), CELLS * CELLS).scatter(1, cells, 1.0)
    there = found.gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2)
    return nn.functional.binary_cross_entropy_with_logits(
        logits.flatten(1), wanted, pos_weight=torch.tensor(8.0)
    ) + 0.2 * nn.functional.smooth_l1_loss(there, boxes)


torch.manual_seed(0)
network = Detector()
images, boxes = scenes("calib", 1_200, 0)
floats, boxes = torch.from_numpy(HOW.normalize(images)), torch.from_numpy(boxes)
optimizer = torch.optim.Adam(network.parameters(), 0.005)
for _ in range(2):
    for rows in torch.randperm(len(floats)).split(25):
        loss = loss_of(*network.dense(floats[rows]), boxes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

free = ({0: torch.export.Dim("batch")},)
program = torch.export.export(network.eval(), (floats[:2],), dynamic_shapes=free)
torch.export.save(program, OUT / "decoding.pt2")

# %% Building
#
# Capture looks for what can't be quantized behind the last layer (the expectation is a layer, but
# of hardly any work) and leaves it, with everything behind it, in float. It is compiled by TVM into
# `model.so`; the integers end with the exact sums of the two convolutions that it reads.

images, _ = scenes("calib", 128, 1)
np.savez(OUT / "scenes.npz", images=images)
request = BuildRequest(
    OUT / "decoding.pt2",
    OUT / "decoding.tvmq",
    calib_data=str(OUT / "scenes.npz"),
    preprocessing=HOW,
)
artifact = Artifact.load(build(request).artifact)
ends = artifact.manifest.float_ends
print("in float:", ", ".join(operator.kind for operator in ends.tail))
assert {"softmax", "conv2d", "topk", "gather"} <= {operator.kind for operator in ends.tail}
assert ends.head == ()

with np.load(artifact.path("golden.npz")) as golden:
    sums = [name for name in golden.files if name.startswith("integers.")]
print("the integers end with", ", ".join(sums))
assert len(sums) == 2

# %% Its price
#
# Off the NPU it is measured on this machine, as other work of the host is.

for row in profile(artifact).operators:
    if row.op == "float":
        print(f"{row.name}: {row.us:.0f} µs, {row.reason}")

# %% How well it finds them
#
# The average precision at an overlap of three quarters, in a few lines: boxes by descending score,
# each right if it overlaps a digit that no better box has found.


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [A, 4] with boxes [B, 4]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def average_precision(batches):
    guesses, digits = [], 0
    for outputs, targets in batches:
        for boxes, scores, wanted in zip(outputs["boxes"], outputs["scores"], targets, strict=True):
            digits += len(wanted)
            shares, left = overlaps(boxes, wanted), set(range(len(wanted)))
            for score, share in zip(scores, shares, strict=True):
                right = share.argmax() in left and share.max() >= 0.75
                left -= {share.argmax()} if right else set()
                guesses.append((score, right))
    right = np.array([right for _, right in sorted(guesses, key=lambda guess: -guess[0])])
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at that recall or a better one
    return {"ap75": float(best[right].sum() / digits)}


# %% Every device
#
#     tvmq eval decoding.tvmq --data scenes.npz --metric boxes:average_precision --min ap75=0.8
#
# The same compiled end is behind the NPU's integers, the CPU's and the reference's, so that what
# they give is the same to the bit, boxes and scores included. Float is the network in torch.

images, labels = scenes("eval", 100, 2)
np.savez(OUT / "labelled.npz", images=images, labels=labels)
data = open_for(artifact, str(OUT / "labelled.npz"), labelling=Labelling("given"))
found = {
    device: evaluate(Session(artifact, device), data.batches(25), metric=average_precision)
    for device in ("npu", "cpu", "reference", "float")
}
for device, result in found.items():
    print(f"{device:10} ap75 {result.numbers['ap75']:.4f} of {result.n} scenes")
numbers = {device: result.numbers["ap75"] for device, result in found.items()}
assert numbers["npu"] == numbers["cpu"] == numbers["reference"]
assert numbers["npu"] > 0.8
assert abs(numbers["npu"] - numbers["float"]) < 0.05
