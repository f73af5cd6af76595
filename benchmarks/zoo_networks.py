"""Networks of the zoo that no package has, or that are inside of a package's model.

Small modules written after their papers, with the sizes of these; and the raw heads of detectors,
which are what a camera's NPU runs: what decodes boxes stands behind them. ``NETWORKS`` lists them
with the shape of one input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.zoo_packages import (
    imported_torchvision,
    imported_transformers,
    imported_ultralytics,
)

Made = Callable[[], nn.Module]


def conv(c: int, k: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(c, k, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(k),
        nn.ReLU(),
    )


# ---- MLPerf Tiny


def ds_cnn() -> nn.Module:
    """Keyword spotting: four depthwise separable layers on 49 x 10 MFCCs."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    for _ in range(4):
        layers += [conv(64, 64, 3, groups=64), conv(64, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


def autoencoder() -> nn.Module:
    """Anomaly detection: ten dense layers, eight numbers in the middle."""
    layers: list[nn.Module] = []
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    for c, k in pairwise(sizes):
        layers += [nn.Linear(c, k), nn.BatchNorm1d(k), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


def mobilenet_v1_quarter() -> nn.Module:
    """Visual wake words: MobileNetV1 with a quarter of the channels."""
    layers: list[nn.Module] = [conv(3, 8, 3, 2)]
    sizes = (8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
    for index, (c, k) in enumerate(pairwise(sizes)):
        stride = 2 if index in (1, 3, 5, 11) else 1
        layers += [conv(c, c, 3, stride, groups=c), conv(c, k, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(c, k, 3, stride), nn.Conv2d(k, k, 3, padding=1), nn.BatchNorm2d(k)
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(c, k, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet8() -> nn.Module:
    """Image classification: three residual blocks on 32 x 32 pixels."""
    blocks = [ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2)]
    return nn.Sequential(
        conv(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


# ---- super-resolution and denoising


def fsrcnn() -> nn.Module:
    """FSRCNN(56, 12, 4), twice as large: PReLU and a transposed convolution of 9 x 9."""
    layers: list[nn.Module] = [nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56)]
    layers += [nn.Conv2d(56, 12, 1), nn.PReLU(12)]
    for _ in range(4):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
    layers += [nn.Conv2d(12, 56, 1), nn.PReLU(56)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(56, 1, 9, 2, 4, output_padding=1))


def espcn() -> nn.Module:
    """ESPCN, three times as large: tanh and a pixel shuffle."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, 9, 3, padding=1),
        nn.PixelShuffle(3),
    )


class DnCNN(nn.Module):
    """The noise of an image by 17 layers, subtracted from it."""

    def __init__(self) -> None:
        super().__init__()
        middle = [conv(64, 64) for _ in range(15)]
        self.noise = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(64, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x - self.noise(x)


# ---- audio


class TemporalBlock(nn.Module):
    """A residual block of TC-ResNet: convolutions over time, 9 long."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(c, k, 9, 2, 4, bias=False),
            nn.BatchNorm1d(k),
            nn.ReLU(),
            nn.Conv1d(k, k, 9, 1, 4, bias=False),
            nn.BatchNorm1d(k),
        )
        self.shortcut = nn.Sequential(
            nn.Conv1d(c, k, 1, 2, bias=False), nn.BatchNorm1d(k), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def tc_resnet8() -> nn.Module:
    """Keyword spotting on 40 MFCCs of 98 frames."""
    return nn.Sequential(
        nn.Conv1d(40, 16, 3, padding=1, bias=False),
        *(TemporalBlock(c, k) for c, k in ((16, 24), (24, 32), (32, 48))),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(48, 12),
    )


class CausalBlock(nn.Module):
    """Two dilated convolutions that see the past only, with weight norm, beside a shortcut."""

    def __init__(self, c: int, k: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.first = weight_norm(nn.Conv1d(c, k, 3, padding=self.padding, dilation=dilation))
        self.second = weight_norm(nn.Conv1d(k, k, 3, padding=self.padding, dilation=dilation))
        self.shortcut = nn.Identity() if c == k else nn.Conv1d(c, k, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)[..., : -self.padding])
        y = F.relu(self.second(y)[..., : -self.padding])
        return F.relu(y + self.shortcut(x))


class TCN(nn.Module):
    """Temporal convolutional network: dilations 1 to 16, the class from the last frame."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(CausalBlock(40 if d == 1 else 32, 32, d) for d in DILATIONS))
        self.classifier = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(x)[:, :, -1])


DILATIONS = (1, 2, 4, 8, 16)


class M5(nn.Module):
    """A classifier of raw samples at 8 kHz: a first layer of 80 taps, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c, k, size, stride in ((1, 32, 80, 16), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1)):
            layers += [nn.Conv1d(c, k, size, stride), nn.BatchNorm1d(k), nn.ReLU(), nn.MaxPool1d(4)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, 35)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.avg_pool1d(x, x.shape[-1])
        return self.classifier(x.permute(0, 2, 1)).squeeze(1)


class LastState(nn.Module):
    """A recurrent classifier of the last frame."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(40, 64, batch_first=True)
        self.classifier = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.recurrent(x)[0][:, -1])


class CRNN(nn.Module):
    """Text of an image: convolutions, then a bidirectional LSTM over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(conv(1, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2)),
            *(conv(64, 64), nn.MaxPool2d((8, 1))),
        )
        self.recurrent = nn.LSTM(64, 64, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(128, 37)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).squeeze(2).permute(0, 2, 1)
        return self.classifier(self.recurrent(columns)[0])


# ---- segmentation


class UNet(nn.Module):
    """Down four times and up again; ``up`` is "transposed", "nearest" or "bilinear"."""

    def __init__(self, up: str, width: int = 16) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            nn.Sequential(conv(c, k), conv(k, k)) for c, k in zip((3, *sizes), sizes, strict=False)
        )
        pairs = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.larger = nn.ModuleList(
            nn.ConvTranspose2d(c, k, 2, 2)
            if up == "transposed"
            else nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(c, k, 1))
            for c, k in pairs
        )
        self.up = nn.ModuleList(nn.Sequential(conv(2 * k, k), conv(k, k)) for _, k in pairs)
        self.classifier = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for larger, block, beside in zip(self.larger, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat((beside, larger(x)), 1))
        return self.classifier(x)


class DeepLabMobileNetV2(nn.Module):
    """DeepLabV3 of torchvision on its MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        models = imported_torchvision().models
        self.backbone = models.mobilenet_v2(weights=None).features
        self.head = models.segmentation.deeplabv3.DeepLabHead(1280, 21, (6, 12, 18))

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(self.backbone(x))
        return F.interpolate(found, x.shape[-2:], mode="bilinear", align_corners=False)


# ---- detectors


class BlazeBlock(nn.Module):
    """Depthwise 5 x 5 and pointwise, beside a shortcut that is pooled and padded with channels."""

    def __init__(self, c: int, k: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 5, stride, 2, groups=c), nn.Conv2d(c, k, 1), nn.BatchNorm2d(k)
        )
        self.pool = nn.Identity() if stride == 1 else nn.MaxPool2d(2)
        self.more = k - c

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(self.pool(x), (0, 0, 0, 0, 0, self.more))
        return F.relu(self.body(x) + shortcut)


class BlazeFace(nn.Module):
    """A face detector after BlazeFace: scores and 16 coordinates on 16 x 16 and 8 x 8 places."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((24, 24, 1), (24, 28, 1), (28, 32, 2), (32, 36, 1), (36, 42, 1), (42, 48, 2))
        sizes += ((48, 56, 1), (56, 64, 1), (64, 72, 1), (72, 80, 1), (80, 88, 1))
        self.near = nn.Sequential(
            conv(3, 24, 5, 2), *(BlazeBlock(c, k, stride) for c, k, stride in sizes)
        )
        self.far = nn.Sequential(BlazeBlock(88, 96, 2), *(BlazeBlock(96, 96) for _ in range(4)))
        self.heads = nn.ModuleList(
            nn.Conv2d(c, k, 1) for c, anchors in ((88, 2), (96, 6)) for k in (anchors, 16 * anchors)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        near = self.near(x)
        far = self.far(near)
        return tuple(head(y) for head, y in zip(self.heads, (near, near, far, far), strict=True))


class CenterNet(nn.Module):
    """CenterNet on ResNet-18: three transposed convolutions, then heat map, size and offset."""

    def __init__(self) -> None:
        super().__init__()
        resnet18 = imported_torchvision().models.resnet18(weights=None)
        self.backbone = nn.Sequential(*list(resnet18.children())[:-2])
        layers: list[nn.Module] = []
        for c in (512, 256, 256):
            layers += [
                nn.ConvTranspose2d(c, 256, 4, 2, 1, bias=False),
                nn.BatchNorm2d(256),
                nn.ReLU(),
            ]
        self.larger = nn.Sequential(*layers)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(256, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, k, 1))
            for k in (80, 2, 2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.larger(self.backbone(x))
        return tuple(head(x) for head in self.heads)


class SSDLiteMobileNetV2(nn.Module):
    """SSDLite on MobileNetV2: six feature maps, a separable head on each."""

    def __init__(self) -> None:
        super().__init__()
        features = imported_torchvision().models.mobilenet_v2(weights=None).features
        self.stages = nn.ModuleList([features[:14], features[14:]])
        for c, k in ((1280, 512), (512, 256), (256, 256), (256, 64)):
            half = k // 2
            self.stages.append(
                nn.Sequential(conv(c, half, 1), conv(half, half, 3, 2, half), conv(half, k, 1))
            )
        sizes = (96, 1280, 512, 256, 256, 64)
        self.heads = nn.ModuleList(
            nn.Sequential(conv(c, c, 3, groups=c), nn.Conv2d(c, 6 * (4 + 21), 1)) for c in sizes
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            found.append(head(x))
        return tuple(found)


class RawHead(nn.Module):
    """A detector of torchvision without what is before the backbone and behind the head."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(x).values()))


def torchvision_detector(name: str) -> nn.Module:
    """One that torchvision makes."""
    detection = imported_torchvision().models.detection
    return RawHead(getattr(detection, name)(weights=None, weights_backbone=None))


def fcos_resnet18() -> nn.Module:
    """FCOS of torchvision on a ResNet-18 with a feature pyramid."""
    detection = imported_torchvision().models.detection
    pyramid = detection.backbone_utils.resnet_fpn_backbone
    levels = pyramid(backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4])
    return RawHead(detection.fcos.FCOS(levels, num_classes=91))


class RawYolo(nn.Module):
    """A YOLO of ultralytics up to the boxes and scores that its head decodes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        DetectionModel = imported_ultralytics().DetectionModel
        self.layers = DetectionModel(f"{name}.yaml", verbose=False).model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        *body, head = self.layers
        for layer in body:
            found.append(layer(self._read(layer.f, x, found)))
            x = found[-1]
        raw = head.forward_head(self._read(head.f, x, found), **head.one2many)
        return raw["boxes"], raw["scores"]

    @staticmethod
    def _read(places: Any, x: Tensor, found: list[Tensor]) -> Any:
        """What a layer reads: the value before it, or those at the places it names."""
        if isinstance(places, int):
            return x if places == -1 else found[places]
        return [x if place == -1 else found[place] for place in places]


def _yolo(name: str) -> tuple[Made, tuple[int, ...]]:
    return partial(RawYolo, name), (3, 160, 160)


# ---- transformers for images that timm hasn't


class Segformer(nn.Module):
    """SegFormer-B0 of transformers: scores of 150 classes on a quarter of the rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        transformers = imported_transformers()
        config = transformers.SegformerConfig(num_labels=150)
        self.network = transformers.SegformerForSemanticSegmentation(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits


class Detr(nn.Module):
    """DETR of transformers on a ResNet-18: scores and boxes of 100 queries."""

    def __init__(self) -> None:
        super().__init__()
        transformers = imported_transformers()
        backbone = transformers.ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            out_features=["stage4"],
        )
        config = transformers.DetrConfig(backbone_config=backbone, num_labels=91)
        self.network = transformers.DetrForObjectDetection(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(x)
        return found.logits, found.pred_boxes


NETWORKS: dict[str, tuple[Made, tuple[int, ...]]] = {
    "ds_cnn": (ds_cnn, (1, 49, 10)),
    "autoencoder": (autoencoder, (640,)),
    "mobilenet_v1_quarter": (mobilenet_v1_quarter, (3, 96, 96)),
    "resnet8": (resnet8, (3, 32, 32)),
    "tc_resnet8": (tc_resnet8, (40, 98)),
    "tcn": (TCN, (40, 98)),
    "m5": (M5, (1, 8000)),
    "fsrcnn": (fsrcnn, (1, 48, 48)),
    "espcn": (espcn, (1, 48, 48)),
    "dncnn": (DnCNN, (1, 48, 48)),
    "blazeface": (BlazeFace, (3, 128, 128)),
    "unet_transposed": (partial(UNet, "transposed"), (3, 96, 96)),
    "unet_nearest": (partial(UNet, "nearest"), (3, 96, 96)),
    "unet_bilinear": (partial(UNet, "bilinear"), (3, 96, 96)),
    "deeplabv3_mobilenet_v2": (DeepLabMobileNetV2, (3, 160, 160)),
    "centernet_resnet18": (CenterNet, (3, 128, 128)),
    "ssdlite_mobilenet_v2": (SSDLiteMobileNetV2, (3, 224, 224)),
    "ssdlite320_mobilenet_v3_large": (
        partial(torchvision_detector, "ssdlite320_mobilenet_v3_large"),
        (3, 224, 224),
    ),
    "retinanet_resnet50_fpn": (
        partial(torchvision_detector, "retinanet_resnet50_fpn"),
        (3, 96, 96),
    ),
    "fcos_resnet18": (fcos_resnet18, (3, 96, 96)),
    "yolov3-tiny": _yolo("yolov3-tiny"),
    "yolov5n": _yolo("yolov5n"),
    "yolov8n": _yolo("yolov8n"),
    "yolo11n": _yolo("yolo11n"),
    "segformer_b0": (Segformer, (3, 96, 96)),
    "detr_resnet18": (Detr, (3, 96, 96)),
    "lstm": (partial(LastState, nn.LSTM), (98, 40)),
    "gru": (partial(LastState, nn.GRU), (98, 40)),
    "crnn": (CRNN, (1, 32, 128)),
}
