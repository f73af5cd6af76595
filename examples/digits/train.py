"""Train the model that the repository ships, on scikit-learn's handwritten digits.

    python examples/digits/train.py

needs no download, takes half a minute and writes next to itself

    digits.pt2         the network, exported with a dynamic batch; input float32[N, 1, 16, 16]
    digits_calib.npz   256 training images, `images` uint8[N, 16, 16, 1] and `labels` int64[N]
    digits_eval.npz    the 597 held-out images, in the same form

The 8 × 8 digits are scaled to 16 × 16. Training sees them rotated, scaled, shifted and noisy;
calibration and evaluation see them as they are. No image of the evaluation set is in the training
or the calibration set. The input of the network is ``(image / 255 - MEAN) / STD``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = 0.3, 0.35
SEED = 0
EPOCHS = 40
BATCH = 64
FOLDER = Path(__file__).resolve().parent


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size (or halves it) and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv_bn(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """float[N, inputs, H, W] to float[N, outputs, H / stride, W / stride]."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class Separable(nn.Module):
    """A depthwise 3 × 3 and a pointwise convolution, as in MobileNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_bn(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = conv_bn(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float[N, inputs, H, W] to float[N, outputs, H / stride, W / stride]."""
        return functional.relu(self.pointwise(functional.relu(self.depthwise(x))))


class DigitNet(nn.Module):
    """A small residual network with a depthwise-separable tail; 46 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16, 3)
        self.layer1 = Residual(16, 16)
        self.layer2 = nn.Sequential(Residual(16, 32, stride=2), Residual(32, 32))
        self.layer3 = nn.Sequential(Separable(32, 64, stride=2), Separable(64, 64, stride=1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """float[N, 1, 16, 16] to the logits float[N, 10]."""
        x = functional.relu(self.stem(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def load() -> tuple[Tensor, Tensor]:
    """The digits as uint8[1797, 1, 16, 16] and their labels int64[1797]."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8), torch.from_numpy(digits.target).long()


def normalize(images: Tensor) -> Tensor:
    """uint8[N, 1, H, W] to what the network reads."""
    return (images.float() / 255 - MEAN) / STD


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 15 degrees, scale by up to 15 %, shift by up to 2 pixels, add noise."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle, scale = uniform(math.radians(15)), 1 + uniform(0.15)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([cos, -sin, uniform(0.25), sin, cos, uniform(0.25)], 1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.float(), grid, align_corners=False)
    return (moved + 12 * torch.randn(moved.shape, generator=generator)).clamp(0, 255)


def train(images: Tensor, labels: Tensor) -> DigitNet:
    """Adam with one cycle of the learning rate."""
    model = DigitNet().train()
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        losses = []
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            logits = model(normalize(augment(images[batch], generator)))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}/{EPOCHS}: loss {np.mean(losses):.3f}")
    return model.eval()


def save_images(path: Path, images: Tensor, labels: Tensor) -> None:
    """Write `images` uint8[N, H, W, 1] and `labels` int64[N]."""
    np.savez_compressed(path, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    print(f"{path.name}: {len(images)} images, {path.stat().st_size / 1024:.0f} kB")


def main() -> None:
    """Train, measure on the held-out images, export."""
    torch.manual_seed(SEED)
    torch.set_num_threads(
        1
    )  # the order of float sums, and so the weights, would follow the thread count
    images, labels = load()
    split = train_test_split(
        np.arange(len(images)), test_size=597, random_state=SEED, stratify=labels.numpy()
    )
    training, held_out = (torch.from_numpy(part) for part in split)
    model = train(images[training], labels[training])
    with torch.no_grad():
        guesses = model(normalize(images[held_out])).argmax(1)
    accuracy = (guesses == labels[held_out]).float().mean().item()
    print(f"held-out accuracy: {accuracy:.4f} of {len(held_out)} images")

    example = normalize(images[:2])
    program = torch.export.export(
        model, (example,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    )
    for node in program.graph.nodes:  # keep source lines, but not where this machine keeps them
        if "stack_trace" in node.meta:
            trace = node.meta["stack_trace"].replace(f"{FOLDER}/", "")
            node.meta["stack_trace"] = re.sub(r'".*/site-packages/', '"site-packages/', trace)
    torch.export.save(program, FOLDER / "digits.pt2")
    print(f"digits.pt2: {(FOLDER / 'digits.pt2').stat().st_size / 1024:.0f} kB")
    save_images(FOLDER / "digits_calib.npz", images[training[:256]], labels[training[:256]])
    save_images(FOLDER / "digits_eval.npz", images[held_out], labels[held_out])


if __name__ == "__main__":
    main()
