"""A metric of your own: COCO's average precision of a detector.

    pip install 'torchmetrics[detection]'
    python tutorials/06_detection_ap.py

Trains a small detector of one stage on drawings of discs and frames, builds it, and measures how
well it finds them: the boxes are decoded in the metric, as they would be behind the device. Beside
a CPU build of torch, take torchvision from the index that torch came from. About 30 seconds.
"""

# %% Drawings, and the boxes in each
#
# An image has up to three shapes, and its target is what torchvision's detectors and torchmetrics
# read: a dict of `boxes`, float32[M, 4] as x1, y1, x2, y2, and `labels`, int64[M].

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchmetrics.detection import MeanAveragePrecision

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
SIZE, STRIDE, KINDS = 32, 4, 2
CELLS = SIZE // STRIDE
HOW = Preprocessing(mean=(0.5,), std=(0.25,))


class Drawings(torch.utils.data.Dataset):
    """Images uint8[3, H, W] and their targets; item ``n`` is always the same drawing."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        generator = np.random.default_rng((self.seed, number))
        row, column = np.indices((SIZE, SIZE))
        image = generator.integers(0, 60, (3, SIZE, SIZE), np.uint8)
        boxes, labels = [], []
        for left, top in generator.permutation([(0, 0), (16, 0), (0, 16), (16, 16)])[:3]:
            kind, radius = generator.integers(KINDS), generator.integers(3, 6)
            x, y = left + generator.choice((6, 10)), top + generator.choice((6, 10))
            down, across = abs(row - y), abs(column - x)
            far = np.hypot(down, across) if kind == 0 else np.maximum(down, across)
            shape = far <= radius if kind == 0 else (far <= radius) & (far > radius - 2)
            image[:, shape] = generator.integers(110, 256, (3, 1))
            boxes.append((x - radius, y - radius, x + radius + 1, y + radius + 1))
            labels.append(kind)
        target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}
        return torch.from_numpy(image), target


def collate(items):
    """Targets differ in length, so they stay a tuple, as in torchvision's references."""
    images, targets = zip(*items, strict=True)
    return torch.stack(images), targets


# %% A detector
#
# For every cell of 4 x 4 pixels it gives a score per kind, and how far the box reaches from the
# middle of the cell to the left, top, right and bottom, in cells. A cell answers for a shape if it
# holds the shape's middle.


class Detector(nn.Module):
    """Scores as logits [N, kinds, cells, cells], and reaches [N, 4, cells, cells]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 32, 1)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.scores = nn.Conv2d(32, KINDS, 1)
        self.reaches = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(x)
        return {"scores": self.scores(x), "reaches": self.reaches(x)}


def middles() -> torch.Tensor:
    """Of all cells, in pixels: x and y, [2, cells, cells]."""
    steps = (torch.arange(CELLS) + 0.5) * STRIDE
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"))


def loss_of(outputs: dict[str, torch.Tensor], targets) -> torch.Tensor:
    """Cross entropy of all scores, and the distance of the reaches where a shape is."""
    wanted = torch.zeros_like(outputs["scores"])
    distance = torch.zeros(())
    for image, target in enumerate(targets):
        for box, kind in zip(target["boxes"], target["labels"], strict=True):
            x, y = (((box[:2] + box[2:]) / 2) / STRIDE).long().tolist()
            wanted[image, kind, y, x] = 1
            middle = middles()[:, y, x]
            reach = torch.cat([middle - box[:2], box[2:] - middle]) / STRIDE
            distance = distance + (outputs["reaches"][image, :, y, x] - reach).abs().mean()
    return nn.functional.binary_cross_entropy_with_logits(
        outputs["scores"], wanted, pos_weight=torch.tensor(5.0)
    ) + distance / len(targets)


torch.manual_seed(0)
network = Detector()
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for images, targets in torch.utils.data.DataLoader(Drawings(3_200, 0), 16, collate_fn=collate):
    floats = HOW.normalize(images.permute(0, 2, 3, 1).numpy())
    loss = loss_of(network(torch.from_numpy(floats)), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

example = (torch.randn(2, 3, SIZE, SIZE),)
batch = ({0: torch.export.Dim("batch")},)
program = torch.export.export(network.eval(), example, dynamic_shapes=batch)
torch.export.save(program, OUT / "detector.pt2")

# %% Build, from the loader of the training
#
# A loader is data as it is: its bytes come with channels first, and its targets are of no use for
# calibration, which doesn't look at them. On the command line it would be a function in a file of
# yours, `--calib-data drawings:training`.


def training():
    return torch.utils.data.DataLoader(Drawings(256, 1), 32, collate_fn=collate)


def validation():
    return torch.utils.data.DataLoader(Drawings(100, 2), 32, collate_fn=collate)


result = build(
    BuildRequest(
        OUT / "detector.pt2",
        OUT / "detector.tvmq",
        calib_data=f"{__name__}:training",
        preprocessing=HOW,
    )
)
artifact = Artifact.load(result.artifact)

# %% The metric
#
# It gets each batch of the loader with the targets that belong to it, untouched. Decoding,
# threshold and the choice of the best boxes are the metric's, and so are the numbers: torchmetrics
# gives COCO's dozen, of which those without an axis can be gated.


def decoded(scores: torch.Tensor, reaches: torch.Tensor) -> dict[str, torch.Tensor]:
    """The cells of an image that are the best of their neighbours, as boxes."""
    best = nn.functional.max_pool2d(scores.amax(0, keepdim=True)[None], 3, 1, 1)[0]
    kind, y, x = torch.nonzero((scores == best) & (scores > -3), as_tuple=True)
    middle, reach = middles()[:, y, x], reaches[:, y, x] * STRIDE
    boxes = torch.cat([middle - reach[:2], middle + reach[2:]]).T
    return {"boxes": boxes, "scores": scores[kind, y, x].sigmoid(), "labels": kind}


def average_precision(batches):
    precision = MeanAveragePrecision()
    for outputs, targets in batches:
        scores, reaches = (torch.from_numpy(outputs[name]) for name in ("scores", "reaches"))
        precision.update(list(map(decoded, scores, reaches)), list(targets))
    found = precision.compute()
    return {name: found[name] for name in ("map", "map_50", "map_75", "mar_10")}


# %% Every device
#
#     tvmq eval detector.tvmq --data drawings:validation --metric drawings:average_precision \
#         --min map=0.8 --min map_50=0.9 --device npu

data = open_for(artifact, f"{__name__}:validation", labelling=Labelling("given"))
numbers = {}
for device in ("npu", "cpu", "reference", "float"):
    found = evaluate(Session(artifact, device), data.batches(32), metric=average_precision)
    numbers[device] = found.numbers
    words = ", ".join(f"{name} {number:.4f}" for name, number in found.numbers.items())
    print(f"{device:10} {words} of {found.n} images")

assert numbers["npu"] == numbers["cpu"] == numbers["reference"]
assert numbers["npu"] != numbers["float"]
assert numbers["npu"]["map_50"] > 0.9
assert abs(numbers["npu"]["map"] - numbers["float"]["map"]) < 0.1
