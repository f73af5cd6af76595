"""Evaluation: counts over batches, and data that does not fit the network."""

from contextlib import suppress
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
    with pytest.raises(InputError, match=r"shape \[1, 3, 8, 8\], neither \[N, classes\]"):
        evaluate(session, [batch([0])])


def test_no_labels():
    with pytest.raises(InputError, match="has no labels"):
        evaluate(Echo(), [Batch({"x": np.eye(3, dtype=np.float32)})])


def test_progress_counts_images():
    seen = []
    evaluate(Echo(), [batch([1, 2]), batch([3])], 3, lambda *count: seen.append(count))
    assert seen == [(2, 3), (3, 3)]


def labels_of(batches):
    return {"sum": float(sum(labels.sum() for _, labels in batches))}


def test_a_metric_gets_outputs_by_name_and_labels_as_they_are():
    anything, seen = object(), []

    def metric(batches):
        seen.extend(batches)
        return {"seen": len(seen)}

    one, other = batch([1, 2, 3]), Batch({"x": np.ones((2, 10), np.float32)}, anything)
    result = evaluate(Echo(), [one, other], metric=metric)
    assert (result.numbers, result.n) == ({"seen": 2}, 5)
    (first, labels), (second, given) = seen
    np.testing.assert_array_equal(first["logits"], one.inputs["x"])
    np.testing.assert_array_equal(second["logits"], other.inputs["x"])
    assert labels is one.labels
    assert given is anything


def test_large_batches_run_in_parts():
    sizes, seen = [], []

    def run(inputs):
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"]}

    def metric(batches):
        seen.extend(outputs["y"] for outputs, _ in batches)
        return len(seen)

    data = batch(list(range(10)))
    result = evaluate(SimpleNamespace(device="cpu", run=run), [data], metric=metric, most=4)
    assert (sizes, result.n) == ([4, 4, 2], 10)
    np.testing.assert_array_equal(seen[0], data.inputs["x"])


def test_a_metric_that_leaves_batches_out():
    with pytest.raises(InputError, match="before it had gone through all batches, after 1 images"):
        evaluate(Echo(), [batch([1]), batch([2])], metric=lambda batches: {"n": len(next(batches))})


@pytest.mark.parametrize("fault", [InputError("image 3 is bad"), ValueError("ours")])
def test_what_ends_the_batches_is_said_whatever_the_metric_does_about_it(fault):
    def broken():
        yield batch([1])
        raise fault

    def swallowing(batches):
        with suppress(Exception):
            labels_of(batches)
        return {"sum": 0.0}

    def replacing(batches):
        try:
            return labels_of(batches)
        except Exception as error:
            raise KeyError("mine") from error

    for metric in (swallowing, replacing):
        with pytest.raises(type(fault), match=str(fault)):
            evaluate(Echo(), broken(), metric=metric)


@pytest.mark.parametrize("name", ["n", "device", "images_per_second"])
def test_names_that_eval_has_itself(name):
    with pytest.raises(InputError, match=f"has a number called '{name}', as eval has. Rename it"):
        evaluate(Echo(), [batch([1])], metric=lambda batches: {name: labels_of(batches)["sum"]})


def test_json_has_the_numbers_by_name_and_no_nan():
    def metric(batches):
        return labels_of(batches) | {"none": float("nan"), "much": float("inf"), "count": 3}

    found = evaluate(Echo(), [batch([1, 2])], metric=metric).as_json()
    assert found.pop("images_per_second") > 0
    assert found == {"sum": 3.0, "none": None, "much": None, "count": 3, "n": 2, "device": "cpu"}
