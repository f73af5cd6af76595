"""Evaluation: counts over batches, and data that does not fit the network."""

from types import SimpleNamespace

import numpy as np
import pytest

from targets.errors import InputError
from tvmq.data.source import Batch
from tvmq.run.evaluate import evaluate


class Echo:
    """A session whose logits are its input."""

    device = "cpu"

    def run(self, inputs):
        return {"logits": inputs["x"]}


def batch(labels, classes=10):
    labels = np.array(labels)
    return Batch({"x": np.eye(classes, dtype=np.float32)[labels % classes]}, labels)


def test_batches_are_counted_together():
    result = evaluate(Echo(), [batch([1, 2, 3]), batch([4])])
    assert (result.top1, result.top5, result.n, result.device) == (1.0, 1.0, 4, "cpu")
    assert result.images_per_second > 0


def test_no_image():
    with pytest.raises(InputError, match="holds no image"):
        evaluate(Echo(), [])


def test_labels_of_another_data_set():
    with pytest.raises(InputError, match=r"from 3 to 42, but the network has 10 classes, 0 to 9"):
        evaluate(Echo(), [batch([3, 42])])


def test_output_that_is_a_picture():
    session = SimpleNamespace(device="cpu", run=lambda inputs: {"y": np.zeros((1, 3, 8, 8))})
    with pytest.raises(InputError, match=r"shape \[1, 3, 8, 8\], not \[N, classes\]"):
        evaluate(session, [batch([0])])


def test_no_labels():
    with pytest.raises(InputError, match="has no labels"):
        evaluate(Echo(), [Batch({"x": np.eye(3, dtype=np.float32)})])


def test_progress_counts_images():
    seen = []
    evaluate(Echo(), [batch([1, 2]), batch([3])], 3, lambda *count: seen.append(count))
    assert seen == [(2, 3), (3, 3)]
