"""What loaders yield: every usual form comes out the same, and labels only where they are asked."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from targets.errors import InputError
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import TensorSpec

X = (TensorSpec("x", (1, 3, 4, 5)),)
TWO = (*X, TensorSpec("scale", (1, 2)))
HOW = Preprocessing((0.25,), (0.5,))
COUNT = 11
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), np.uint8)
FLOATS = HOW.normalize(PIXELS)
TENSOR = torch.from_numpy(FLOATS)
CLASSES = np.arange(COUNT) % 4
SCALE = torch.arange(2.0 * COUNT).reshape(COUNT, 2)
EXACT = torch.round(TENSOR * 4) / 4  # what 8 bits of mantissa hold


@pytest.fixture
def yielding(monkeypatch):
    """Opens a source that yields the items given."""

    def make(items, use="ignored", inputs=X, how=HOW, classes=4):
        module = types.ModuleType("some_loader")
        module.items = items
        monkeypatch.setitem(sys.modules, "some_loader", module)
        return open_data("some_loader:items", inputs, how, Labelling(use, classes))

    return make


def loader(*tensors):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=4)


def parts(*columns):
    """Batches of 4 of each column."""
    for start in range(0, COUNT, 4):
        yield tuple(column[start : start + 4] for column in columns)


def pictures():
    return [Image.fromarray(image) for image in PIXELS]


LABELLED = {
    "DataLoader": lambda: loader(TENSOR, torch.from_numpy(CLASSES)),
    "tuples": lambda: parts(FLOATS, CLASSES),
    "names behind": lambda: parts(FLOATS, CLASSES, [str(n) for n in range(COUNT)]),
    "columns": lambda: ({"x": x, "label": y} for x, y in parts(TENSOR, CLASSES)),
    "transformers": lambda: ({"pixel_values": x, "labels": y} for x, y in parts(TENSOR, CLASSES)),
    "one name": lambda: ({"noisy": x, "digit": y} for x, y in parts(TENSOR, CLASSES)),
    "more columns": lambda: ({"id": y, "image": x, "target": y}
                             for x, y in parts(TENSOR, torch.from_numpy(CLASSES))),
    "nested": lambda: ((x, {"area": y * 9, "label": y}) for x, y in parts(TENSOR, CLASSES)),
    "dict and labels": lambda: (({"x": x}, y) for x, y in parts(TENSOR, CLASSES)),
    "rows": lambda: ([{"image": x[i], "label": int(y[i])} for i in range(len(x))]
                     for x, y in parts(TENSOR, CLASSES)),
    "tuples of each": lambda: ((tuple(x), tuple(y)) for x, y in parts(TENSOR, CLASSES)),
    "single": lambda: zip(TENSOR, CLASSES.tolist(), strict=True),
    "bytes": lambda: parts(PIXELS, CLASSES),
    "bytes of torch": lambda: parts(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), CLASSES),
    "single bytes": lambda: zip(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), CLASSES, strict=True),
    "datasets": lambda: [{"image": pictures(), "label": CLASSES.tolist()}],
    "datasets by row": lambda: ({"image": picture, "label": int(label)}
                                for picture, label in zip(pictures(), CLASSES, strict=True)),
    "whole": lambda: [(TENSOR.requires_grad_(), CLASSES)],
}  # fmt: skip


@pytest.mark.parametrize("form", LABELLED)
def test_every_usual_form(yielding, form):
    for use in ("ignored", "classes"):
        batches = list(yielding(LABELLED[form], use).batches(3))
        assert [len(batch) for batch in batches] == [3, 3, 3, 2]
        found = np.concatenate([batch.inputs["x"] for batch in batches])
        np.testing.assert_array_equal(found, FLOATS)
        if use == "ignored":
            assert all(batch.labels is None for batch in batches)
        else:
            labels = np.concatenate([batch.labels for batch in batches])
            assert labels.dtype == np.int64
            np.testing.assert_array_equal(labels, CLASSES)


ALONE = {
    "tensors": lambda: (x for (x,) in parts(TENSOR)),
    "DataLoader": lambda: loader(TENSOR),
    "lists of images": lambda: (list(x) for (x,) in parts(TENSOR)),
    "images": lambda: iter(TENSOR),
    "pictures": pictures,
    "lists of pictures": lambda: [pictures()],
}


@pytest.mark.parametrize("form", ALONE)
def test_inputs_alone(yielding, form):
    (batch,) = yielding(ALONE[form]).batches(100)
    np.testing.assert_array_equal(batch.inputs["x"], FLOATS)
    (batch,) = yielding(ALONE[form], "classes").batches(100)
    assert batch.labels is None


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(COUNT, 4, 5),
        torch.eye(COUNT),
        torch.randn(COUNT),
        torch.full((COUNT,), -1),
        [{"boxes": torch.zeros(1, 4)}] * COUNT,
        ["cat"] * COUNT,
        object(),
    ],
    ids=["masks", "one-hot", "floats", "unlabelled", "boxes", "names", "anything"],
)
def test_labels_that_calibration_does_not_need(yielding, labels):
    source = yielding([(TENSOR, labels)])
    assert sum(map(len, source.batches(4))) == COUNT
    assert sum(map(len, source.samples(5, 4))) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_floats_of_other_widths(yielding, dtype):
    for items in (EXACT.to(dtype), loader(EXACT.to(dtype)), [list(EXACT.to(dtype))]):
        (batch,) = yielding(items).batches(100)
        np.testing.assert_array_equal(batch.inputs["x"], EXACT.numpy())


def test_several_inputs(yielding):
    for items in (
        loader(TENSOR, SCALE, torch.from_numpy(CLASSES)),
        [((TENSOR, SCALE), CLASSES)],
        [({"scale": SCALE, "x": TENSOR}, CLASSES)],
        [{"scale": SCALE, "label": CLASSES, "x": TENSOR}],
        ([{"x": TENSOR[i], "scale": SCALE[i], "label": CLASSES[i]}] for i in range(COUNT)),
    ):
        (batch,) = yielding(items, "classes", TWO).batches(100)
        np.testing.assert_array_equal(batch.inputs["x"], FLOATS)
        np.testing.assert_array_equal(batch.inputs["scale"], SCALE)
        np.testing.assert_array_equal(batch.labels, CLASSES)


def test_gray_images(yielding):
    gray = (TensorSpec("x", (1, 1, 4, 5)),)
    want = HOW.normalize(PIXELS[..., :1])
    images = PIXELS[..., 0]
    for items in (
        [images],
        [(images, images)],  # masks, not two images
        [images[:, None]],
        [images[..., None]],
        iter(images),
        [[Image.fromarray(image) for image in images]],
    ):
        (batch,) = yielding(items, inputs=gray).batches(100)
        np.testing.assert_array_equal(batch.inputs["x"], want)


@pytest.mark.parametrize(
    ("item", "pattern"),
    [
        ({"a": TENSOR, "b": TENSOR}, "keys a, b; missing: x, and more than one of them looks"),
        ({"a": CLASSES, "y": TENSOR}, "keys a, y; missing: x, and none of them looks like it"),
        ((), "yields nothing at a time"),
        (torch.randn(2, 3, 5, 4), r"'x' has shape \[2, 3, 5, 4\], the network takes \[N, 3, 4, 5\]"
                                  "; floats are taken as they are, so give them in this size"),
        (torch.randn(2, 4, 5, 3), r"transpose it to \[N, C, H, W\]"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.uint8), r"'x': comes out as 9x9, the network takes "
                                                     "5x4; give --resize and --crop"),
        (torch.zeros(2, 2, 4, 5, dtype=torch.uint8), r"'x' is uint8 of shape \[2, 2, 4, 5\]; "
                                                     r"wanted are images \[N, H, W, 3\], or"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int16), "is int16; wanted float32"),
        ([Image.new("RGB", (9, 9))], "comes out as 9x9"),
        ([Image.new("I", (5, 4))], "32-bit integers"),
        (([TENSOR[0], TENSOR[0][:2]], CLASSES), "same shape"),
    ],
)  # fmt: skip
def test_what_is_refused(yielding, item, pattern):
    with pytest.raises(InputError, match=pattern) as error:
        list(yielding([item]).batches(4))
    assert str(error.value).startswith("some_loader:items")


def test_more_inputs_than_things(yielding):
    with pytest.raises(InputError, match="yields 1 things at a time, the network has 2 inputs"):
        list(yielding(loader(TENSOR), inputs=TWO).batches(4))
    with pytest.raises(InputError, match="yields one array; the network has 2 inputs"):
        list(yielding(TENSOR, inputs=TWO).batches(4))
    with pytest.raises(InputError, match="yields the keys x, y; missing: scale"):
        list(yielding([{"x": TENSOR, "y": CLASSES}], inputs=TWO).batches(4))


def test_columns_of_which_any_may_be_the_class(yielding):
    items = [{"x": TENSOR, "coarse": CLASSES, "fine": CLASSES}]
    with pytest.raises(InputError, match="class numbers may be any of coarse, fine; call one"):
        list(yielding(items, "classes").batches(4))
    assert sum(map(len, yielding(items).batches(4))) == COUNT


def test_a_metric_gets_the_labels_of_each_batch_as_they_are(yielding):
    boxes, masks = [object() for _ in range(COUNT)], torch.zeros(COUNT, 4, 5)
    for items, want in (
        ([(TENSOR, boxes)], boxes),
        ([{"image": TENSOR, "mask": masks}], masks),
        ([(TENSOR, masks, boxes)], (masks, boxes)),
        ([{"image": TENSOR, "mask": masks, "boxes": boxes}], {"mask": masks, "boxes": boxes}),
        ([TENSOR], None),
    ):
        (batch,) = yielding(items, "given").batches(4)  # of the loader's size
        np.testing.assert_array_equal(batch.inputs["x"], FLOATS)
        if isinstance(want, tuple | dict):
            assert len(want) == len(batch.labels)
        else:
            assert batch.labels is want


def test_a_limit_divides_what_has_an_entry_per_image(yielding):
    boxes = [object() for _ in range(COUNT)]
    masks = torch.arange(COUNT)
    items = [(TENSOR, boxes, masks)] * 2
    first, second = yielding(items, "given").batches(4, limit=COUNT + 2)
    assert first.labels == (boxes, masks)
    assert len(second) == 2
    assert second.labels[0] == boxes[:2]
    assert second.labels[1].tolist() == [0, 1]
    two = (TENSOR[:2], boxes[:2], masks[:2])  # as many columns as images: which are they?
    for item in ((TENSOR, object()), (TENSOR, "anything"), two):
        with pytest.raises(InputError, match="let --samples end where a batch of the loader does"):
            list(yielding([item], "given").batches(4, limit=1))
    (batch,) = yielding([(TENSOR, object())], "given").batches(4, limit=COUNT)
    assert len(batch) == COUNT
