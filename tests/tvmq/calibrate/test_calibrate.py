"""Streaming images through the float graph."""

import warnings

import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model, images

from targets.errors import InputError
from tvmq.calibrate.calibrate import calibrate

NAME = "resnet_small"


def test_observes_every_value_exactly():
    model, x = float_model(NAME), images(NAME)
    histograms = calibration(NAME).histograms
    assert list(histograms) == ["x", "relu", "relu_1", "relu_2", "relu_3", "relu_4", "avg_pool2d"]
    assert histograms["x"].high == float(x.max())
    assert histograms["x"].counts.sum() == x.numel()
    with torch.no_grad():
        seen = torch.fx.Interpreter(model.graph_module, garbage_collect_values=False)
        seen.run(x)
    last = {node.name: value for node, value in seen.env.items()}["relu_4"]
    assert histograms["relu_4"].high == pytest.approx(float(last.max()), rel=1e-5)


def test_batch_size_does_not_matter_and_samples_limit():
    model, x = float_model(NAME), images(NAME)
    heard = []
    some = calibrate(model, [x[:3], x[3:20], x[20:]], 21, lambda *told: heard.append(told))
    assert (some.samples, heard) == (21, [(3, 21), (20, 21), (21, 21)])
    other = calibrate(model, [x[:21]])
    np.testing.assert_allclose(some.histograms["relu"].high, other.histograms["relu"].high, 1e-5)
    np.testing.assert_array_equal(some.histograms["x"].counts, other.histograms["x"].counts)


@pytest.mark.parametrize("form", [list, tuple, iter], ids=["list", "tuple", "generator"])
def test_images_can_be_read_again(form):
    calibrated = calibrate(float_model(NAME), form(images(NAME).split(8)), 12)
    for _ in range(2):
        read = torch.cat([inputs[0] for inputs in calibrated.batches()])
        assert torch.equal(read, images(NAME)[:12])


def test_batches_by_name_and_as_arrays():
    x = images(NAME)[:4]
    for batch in ({"x": x.numpy()}, x.numpy(), (x,)):
        assert calibrate(float_model(NAME), [batch]).histograms["x"].high == float(x.max())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no image"),
        ([{"y": torch.zeros(1, 3, 12, 12)}], "has no 'x', only y"),
        ([torch.zeros(1, 3, 12, 13)], r"\[3, 12, 13\].*expects \[3, 12, 12\]"),
        ([(torch.zeros(1), torch.zeros(1))], "has 2 tensors"),
        ([torch.full((1, 3, 12, 12), float("inf"))], "value x is NaN or infinite"),
    ],
    ids=["empty", "name", "shape", "count", "infinite"],
)
def test_refuses(batches, message):
    with pytest.raises(InputError, match=message) as refused:
        calibrate(float_model(NAME), batches)
    assert len(str(refused.value).splitlines()) == 1


def test_images_that_cannot_be_written_to_are_taken_without_a_warning():
    """Arrays of an .npz file are mapped, not read."""
    array = images(NAME)[:4].numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrate(float_model(NAME), [array]).samples == 4
