"""A metric of your own: intersection over union of a segmentation network.

    pip install torchmetrics
    python tutorials/05_segmentation_iou.py

Trains a small fully convolutional network on drawings of discs and squares, builds it, and measures
on every device how well its masks cover the right ones. About 20 seconds.
"""

# %% Drawings, and the mask of each
#
# Every pixel has a class: 0 is the background, 1 a disc, 2 a square. Both shapes come in all
# colours and are full of noise, so that their form alone tells them apart.

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.labels import Labelling
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session

OUT = Path("out") / "tutorials"
OUT.mkdir(parents=True, exist_ok=True)
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
SIZE, CLASSES = 24, 3
HOW = Preprocessing(mean=(0.5,), std=(0.25,))


def drawings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8[N, H, W, 3] and masks int64[N, H, W]."""
    generator = np.random.default_rng(seed)
    row, column = np.indices((SIZE, SIZE))
    images = generator.integers(0, 170, (count, SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((count, SIZE, SIZE), np.int64)
    for image, mask in zip(images, masks, strict=True):
        for kind, middle in ((1, 6), (2, 17)) if generator.random() < 0.5 else ((2, 6), (1, 17)):
            y, x, radius = generator.integers(6, 18), middle, generator.integers(3, 6)
            down, across = abs(row - y), abs(column - x)
            far = np.hypot(down, across) if kind == 1 else np.maximum(down, across)
            mask[far <= radius] = kind
            image[far <= radius] //= 5
            image[far <= radius] += generator.integers(40, 200, 3, np.uint8)
    return images, masks


# %% A network that answers for every pixel
#
# Convolutions alone, the last of which has a channel per class. The batch stays dynamic in the
# export, as always.

torch.manual_seed(0)
layers: list[nn.Module] = []
for inputs, outputs, dilation in ((3, 16, 1), (16, 24, 2), (24, 24, 4), (24, 24, 1)):
    layers += [
        nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
network = nn.Sequential(*layers, nn.Conv2d(24, CLASSES, 1))
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for step in range(220):
    images, masks = drawings(16, step)
    logits = network(torch.from_numpy(HOW.normalize(images)))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(masks))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

example = (torch.randn(2, 3, SIZE, SIZE),)
batch = ({0: torch.export.Dim("batch")},)
program = torch.export.export(network.eval(), example, dynamic_shapes=batch)
torch.export.save(program, OUT / "segmentation.pt2")

# %% Build
#
# The `.npz` that calibrates may have the masks in it, too: labels are read where they are needed,
# and calibration needs none.

for name, count, seed in (("calib", 128, 1_000), ("eval", 200, 1_001)):
    images, masks = drawings(count, seed)
    np.savez(OUT / f"segmentation_{name}.npz", images=images, labels=masks)
result = build(
    BuildRequest(
        OUT / "segmentation.pt2",
        OUT / "segmentation.tvmq",
        calib_data=str(OUT / "segmentation_calib.npz"),
        preprocessing=HOW,
    )
)
artifact = Artifact.load(result.artifact)
(output,) = artifact.manifest.outputs

# %% The metric
#
# A function that goes through all batches: pairs of the outputs by name and the labels as the data
# has them, here the rows of `labels`. What it returns are numbers by name. torchmetrics keeps the
# counts over the batches; a mean of what each batch gives would be another number.


def mean_iou(batches):
    iou = MulticlassJaccardIndex(num_classes=CLASSES, average="none")
    for outputs, masks in batches:
        logits = torch.from_numpy(outputs[output.name])
        iou.update(logits.argmax(1), torch.as_tensor(masks))
    background, disc, square = iou.compute()
    return {"miou": (background + disc + square) / 3, "disc": disc, "square": square}


# %% Every device
#
# With the function in a file `shapes.py`, the command line does the same, and fails if the network
# has become worse than it may:
#
#     tvmq eval segmentation.tvmq --data segmentation_eval.npz --metric shapes:mean_iou \
#         --min miou=0.8 --device npu

data = open_for(artifact, str(OUT / "segmentation_eval.npz"), labelling=Labelling("given"))
numbers = {}
for device in ("npu", "cpu", "reference", "float"):
    found = evaluate(Session(artifact, device), data.batches(64), metric=mean_iou)
    numbers[device] = found.numbers
    words = ", ".join(f"{name} {number:.4f}" for name, number in found.numbers.items())
    print(f"{device:10} {words} of {found.n} images")

assert numbers["npu"] == numbers["cpu"] == numbers["reference"]
assert numbers["npu"] != numbers["float"]
assert numbers["npu"]["miou"] > 0.8
assert abs(numbers["npu"]["miou"] - numbers["float"]["miou"]) < 0.02
