"""A vision transformer: attention, softmax and layer norm down to the integers.

    python tutorials/07_vision_transformer.py

Trains a small transformer on the digits, builds it, and looks at what runs where and at what price.
"""

# %% A transformer
#
# Nothing about it is made for tvmq: patches, a class token, positions, blocks that normalize first,
# attention with one dense layer for queries, keys and values.

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from targets.rows import exponentials, softmax_sums
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.profile.profile import profile
from tvmq.run.evaluate import evaluate
from tvmq.run.execute import open_for
from tvmq.run.session import Session
from tvmq.settings import Settings

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
OUT.mkdir(parents=True, exist_ok=True)
MEAN, STD = 0.3, 0.35
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself
torch.manual_seed(0)


class Attention(nn.Module):
    """Every token looks at every other, with two heads."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    """Attention and a dense network, each behind a layer norm and around a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = Attention(channels)
        self.dense = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dense(self.norm2(x))


class Transformer(nn.Module):
    """Patches of 4 × 4 pixels, two blocks, a classifier on the class token."""

    def __init__(self, pixels: int, channels: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, channels, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(torch.randn(1, 1 + (pixels // patch) ** 2, channels) * 0.1)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


# %% Training
#
# On the images that the shipped example calibrates with, for a few seconds; it need not be good.

data = np.load(DIGITS / "digits_calib.npz")
images = torch.from_numpy(data["images"]).float().reshape(-1, 1, *data["images"].shape[1:3]) / 255
images, labels = (images - MEAN) / STD, torch.from_numpy(data["labels"]).long()
network = Transformer(images.shape[-1])
optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
for _ in range(25):
    for rows in torch.randperm(len(images)).split(64):
        loss = F.cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
program = torch.export.export(
    network.eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)
)
torch.export.save(program, OUT / "transformer.pt2")

# %% Building
#
# The ways in which networks part their heads, move the batch about and join tokens are followed
# back, so that of all reshapes and transpositions nothing is left: attention is two products of
# tokens, head by head, and a softmax between them.

request = BuildRequest(
    OUT / "transformer.pt2",
    OUT / "transformer.tvmq",
    settings=Settings(),
    calib_data=str(DIGITS / "digits_calib.npz"),
    preprocessing=Preprocessing(mean=(MEAN,), std=(STD,)),
)
artifact = Artifact.load(build(request).artifact)
operators = Counter((op.op, op.device) for op in profile(artifact).operators)
for (kind, device), count in sorted(operators.items()):
    print(f"{count:3} {kind} on the {device.upper()}")
kinds = {kind for kind, _ in operators}
assert {"matmul", "softmax", "norm"} <= kinds

# %% Three answers
#
# What was evaluated is what runs. Softmax and layer norm are defined in integers (targets/rows.py);
# reference, CPU and NPU execute that definition.

source = open_for(artifact, str(DIGITS / "digits_eval.npz"))
top1 = {
    device: evaluate(Session(artifact, device), source.batches(64)).top1
    for device in ("float", "reference", "cpu", "npu")
}
print(", ".join(f"{device} {accuracy:.4f}" for device, accuracy in top1.items()))
assert top1["npu"] == top1["cpu"] == top1["reference"]
assert top1["npu"] > top1["float"] - 0.02

# %% Softmax in integers
#
# A table of exponentials by how far a code is below the largest of its row, their sum, one
# reciprocal of 16 bits, and a shift. It adds up to 1 but for what is rounded down.

step = 2.0**-4
codes = np.array([40, 10, -20, 38])
probabilities = softmax_sums(codes, exponentials(step)) / 2**30
exact = torch.softmax(torch.from_numpy(codes) * step, 0).numpy()
print("softmax of integers", np.round(probabilities, 6), "of reals", np.round(exact, 6))
assert np.abs(probabilities - exact).max() < 2**-13
assert probabilities.sum() <= 1
