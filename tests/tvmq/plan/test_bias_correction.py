"""Corrections remove the mean error, and stay out where they do not help."""

import dataclasses

import torch
from quantization_cases import calibration, float_model, images

from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.bias_correction import correct_biases
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings

NAME = "resnet_small"
COARSE = Settings(weight_bits=3, first_last_bits=3, bias_correction=False)


def _mean_error(plan):
    x = images(NAME)
    with torch.no_grad():
        exact = float_model(NAME).graph_module(x)[0]
        return (annotate(float_model(NAME), plan)(x.double())[0] - exact).mean(0).abs().mean()


def test_mean_error_of_the_outputs_shrinks():
    model = float_model(NAME)
    plain = make_plan(model, calibration(NAME), COARSE)
    biases = correct_biases(model, plain, calibration(NAME))
    corrected = complete_plan(model, COARSE, "", plain.values, plain.weights, biases)
    assert float(_mean_error(corrected)) < 0.5 * float(_mean_error(plain))
    assert biases.keys() == {"linear", "conv2d", *(f"conv2d_{i}" for i in (1, 2, 3, 4))}


def test_kept_exactly_where_it_helps_held_out_images():
    model = float_model(NAME)
    biases = correct_biases(model, make_plan(model, calibration(NAME), COARSE), calibration(NAME))
    for bias in biases.values():
        before, after = (
            float(x) for x in bias.reason.split("error ")[1].split(" on ")[0].split(" -> ")
        )
        assert (bias.correction != ()) == bias.reason.startswith("kept") == (after < before)
        assert "16 held-out images" in bias.reason


def test_a_correction_that_does_not_carry_over_is_left_out():
    """Two halves of images with opposite errors: what one half teaches hurts the other."""
    model, x = float_model(NAME), images(NAME)
    opposite = torch.cat([x[:8] * 0 + 1.7, x[:8] * 0 - 1.7])
    plan = make_plan(model, calibration(NAME), COARSE)
    source = dataclasses.replace(calibration(NAME), batches=lambda: iter([(opposite,)]))
    reasons = [bias.reason for bias in correct_biases(model, plan, source).values()]
    assert any(reason.startswith("left out") for reason in reasons)


def test_one_image_is_too_few():
    model = float_model(NAME)
    one = dataclasses.replace(calibration(NAME), batches=lambda: iter([(images(NAME)[:1],)]))
    biases = correct_biases(model, make_plan(model, calibration(NAME), COARSE), one)
    assert all(bias.correction == () for bias in biases.values())


def test_off_without_data_or_when_asked():
    assert make_plan(float_model(NAME), calibration(NAME), COARSE).biases == {}
    no_data = dataclasses.replace(calibration(NAME), samples=0)
    assert make_plan(float_model(NAME), no_data).biases == {}


def test_no_mean_of_elements_that_codes_leave_out():
    """The codes of what is read through a global max pool hold the largest elements alone."""
    torch.manual_seed(0)
    scaled = torch.nn.BatchNorm2d(4)
    scaled.running_mean.uniform_(-1, 1)
    module = torch.nn.Sequential(scaled, torch.nn.AdaptiveMaxPool2d(1)).eval()
    x = torch.randn(32, 4, 12, 12)
    with torch.no_grad():
        model = capture_program(torch.export.export(module, (x,)))
        plan = make_plan(model, calibrate(model, [x], samples=32))
        error = annotate(model, plan)(x.double())[0] - module(x)
    (bias,) = plan.biases.values()
    assert (bias.correction, bias.reason) == ((), "left out: max pools alone read what it reads")
    assert float(error.abs().max()) < 0.1
