"""Plans as JSON: there and back, edited, and wrong."""

import json

import pytest
from quantization_cases import calibration, float_model

from targets.errors import InputError
from tvmq.plan_file import plan_from_json, plan_to_json, read_plan, write_plan
from tvmq.planner import make_plan
from tvmq.scheme import Settings

NAME = "resnet_small"


@pytest.fixture(scope="module")
def text():
    return plan_to_json(make_plan(float_model(NAME), calibration(NAME)))


@pytest.mark.parametrize("scales", ["pot", "free"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_round_trip(tmp_path, scales, granularity):
    settings = Settings(scales=scales, granularity=granularity, exclude=("layer1.*",))
    plan = make_plan(float_model(NAME), calibration(NAME), settings)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json", float_model(NAME)) == plan


def test_every_value_and_layer_has_a_reason(text):
    document = json.loads(text)
    for entry in (*document["values"].values(), *document["layers"].values()):
        assert entry["reason"]


def test_an_edited_step_changes_what_follows_from_it(text):
    document = json.loads(text)
    before = plan_from_json(text, float_model(NAME))
    document["values"]["relu_1"]["step"] = before.values["relu_1"].step * 2
    after = plan_from_json(json.dumps(document), float_model(NAME))
    assert after.requantize["conv2d_1"].shift[0] == before.requantize["conv2d_1"].shift[0] + 1
    assert after.requantize["conv2d_2"].shift[0] == before.requantize["conv2d_2"].shift[0] - 1


def _edit(text, path, value):
    document = json.loads(text)
    *parents, last = path
    entry = document
    for key in parents:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("values", "relu_1", "step"), 0.03, "values.relu_1.step is 0.03.*power of two"),
        (("values", "relu_1", "step"), "2^x", "values.relu_1.step"),
        (("values", "relu_1", "step"), -1, "positive"),
        (("values", "relu_1", "zero_point"), 300, r"values.relu_1.zero_point is 300.*\[0, 255\]"),
        (("values", "relu_1", "bits"), 9, "values.relu_1.bits"),
        (("values", "relu_1", "type"), "int4", "int8 or uint8"),
        (("values", "relu_9"), {}, "values.relu_9 is 'an unknown name'"),
        (("values", "relu_1"), None, "values.relu_1 is 'missing'"),
        (("layers", "conv2d", "weight_steps"), [1, 2], "layers.conv2d.weight_steps.*1 or 16"),
        (("layers", "conv2d", "weight_steps"), [0.3], r"weight_steps\[0\].*power of two"),
        (("layers", "conv2d", "bias_correction"), {"add": [1]}, "bias_correction.add"),
        (("layers", "conv9"), {}, "layers.conv9"),
        (("settings", "scales"), "logarithmic", "choose one of pot, free"),
        (("settings", "scale"), 1, "settings.scale is 'an unknown name'"),
        (("settings", "method"), "rapq", r"plan: settings: method is 'rapq'; give a list"),
        (("settings", "method"), [None], r"settings: method is \[None\]; give a list"),
        (("settings", "exclude"), 1, "settings: exclude is 1; give a list"),
        (("settings", "iterations"), "x", "settings: iterations is 'x'; give a whole number"),
        (("settings", "weight_bits"), True, "settings: weight_bits is True; give a whole number"),
        (("settings", "kappa"), "x", "settings: kappa is 'x'; give a number"),
        (("settings", "bias_correction"), "no", "settings: bias_correction is 'no'; give true"),
        (("learned_codes",), [], r"learned_codes is \[\]; expected an object"),
        (("learned_codes", "conv9"), "", "learned_codes.conv9 is 'an unknown name'"),
        (("learned_codes", "avg_pool2d"), "", "learned_codes.avg_pool2d is 'an unknown name'"),
        (("model",), "0", "another network"),
        (("format",), "x", "not a tvmq-plan"),
    ],
)
def test_wrong_entries_are_named(text, path, value, message):
    with pytest.raises(InputError, match=message):
        plan_from_json(_edit(text, path, value), float_model(NAME))


def test_tied_values_must_stay_equal():
    name = "densenet_small"
    text = plan_to_json(make_plan(float_model(name), calibration(name)))
    with pytest.raises(InputError, match=r"values.relu_1 .*those of relu, with which"):
        plan_from_json(_edit(text, ("values", "relu_1", "step"), 8.0), float_model(name))


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_not_a_plan(content):
    with pytest.raises(InputError, match="is not"):
        plan_from_json(content, float_model(NAME))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_plan(tmp_path / "none.json", float_model(NAME))
