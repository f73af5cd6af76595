"""The engine: every method runs, seeds decide, an interrupt changes nothing, gates hold."""

import errno
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model, images

from targets.errors import InputError
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_file import plan_to_json
from tvmq.plan.planner import make_plan
from tvmq.reconstruct import stored_rows, training, unit_state
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.reconstruct.methods import METHODS, Method
from tvmq.reconstruct.unit_state import Candidate, Checkpoints, UnitResult, forget_checkpoints
from tvmq.settings import Settings

NAME = "resnet_small"
RAPQ = 5
"""Iterations are enough: the search has come most of the way."""


def _settings(method: str, scales: str = "pot", **other) -> Settings:
    given = {"weight_bits": 2, "activation_bits": 4, "granularity": "channel", "iterations": 20}
    return Settings(scales=scales, method=(method,), **(given | other))


def _run(
    method: str,
    scales: str = "pot",
    *,
    seed: int = 0,
    name: str = NAME,
    iterations: int = 20,
    **other,
) -> Reconstruction:
    settings = _settings(method, scales, iterations=iterations)
    start = make_plan(float_model(name), calibration(name), settings)
    return reconstruct(float_model(name), calibration(name), start, seed=seed, **other)


@cache
def _rapq() -> Reconstruction:
    return _run("rapq", iterations=RAPQ)


def _squared_error(plan, name: str = NAME) -> float:
    with torch.no_grad():
        exact = float_model(name).graph_module(images(name))[0]
        quantized = annotate(float_model(name), plan)(images(name).double())[0]
    return float((quantized - exact).square().mean())


@pytest.mark.parametrize(
    ("method", "scales"),
    [("adaround", "free"), ("brecq", "pot"), ("brecq", "free"), ("qdrop", "pot"), ("rapq", "pot")],
)
def test_every_method_comes_closer_than_rounding_to_nearest(method, scales):
    rtn = make_plan(float_model(NAME), calibration(NAME), _settings("rtn", scales))
    learned = _rapq() if method == "rapq" else _run(method, scales)
    assert _squared_error(learned.plan) < _squared_error(rtn)
    assert all(weight.codes for n, weight in learned.plan.weights.items() if "pool" not in n)


def test_what_is_kept_has_the_smallest_held_out_loss():
    for unit in _rapq().units:
        names = [candidate.name for candidate in unit.candidates]
        losses = [candidate.loss for candidate in unit.candidates]
        assert names == ["nearest", "compensated", "learned"]
        assert unit.held_out_loss == min(losses) == losses[names.index(unit.kept)]


def test_learning_that_harms_is_refused(monkeypatch):
    def harm(unit, *_):
        for weight in unit.weights.values():
            weight.freeze(torch.full_like(weight.weight, weight.low))
        return 20

    monkeypatch.setattr(training, "train_unit", harm)
    result = _run("qdrop")
    assert {unit.kept for unit in result.units} == {"nearest"}
    assert not any(unit.accepted for unit in result.units)
    assert "nothing else was better" in result.plan.weights["conv2d_1"].reason


def test_the_batch_of_a_step_is_what_was_asked_for(monkeypatch):
    sizes = set()
    real = training.train_unit

    def watched(unit, cache, *rest):
        module = unit.graph_module
        module.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
        return real(unit, cache, *rest)

    monkeypatch.setattr(training, "train_unit", watched)
    settings = replace(_settings("adaround"), learn_batch=5)
    start = make_plan(float_model(NAME), calibration(NAME), settings)
    reconstruct(float_model(NAME), calibration(NAME), start)
    assert 5 in sizes  # nothing else takes so few


def test_a_seed_decides_everything():
    assert plan_to_json(_run("rapq", iterations=RAPQ).plan) == plan_to_json(_rapq().plan)
    assert plan_to_json(_run("rapq", seed=1, iterations=RAPQ).plan) != plan_to_json(_rapq().plan)


def test_an_interrupted_job_goes_on_to_the_same_result(tmp_path, monkeypatch):
    save, finished = Checkpoints.save, []

    def save_two(self, index, *what):
        save(self, index, *what)
        finished.append(index)
        if len(finished) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_two)
    with pytest.raises(KeyboardInterrupt):
        _run("rapq", iterations=RAPQ, checkpoints=tmp_path)
    notes = []
    resumed = _run("rapq", iterations=RAPQ, checkpoints=tmp_path, note=notes.append)
    assert notes == [f"note: 2 finished units in {tmp_path}; going on from there."]
    assert finished == [0, 1, 2, 3]  # the first two were not learned again
    assert plan_to_json(resumed.plan) == plan_to_json(_rapq().plan)


def _checkpoints(
    folder, seed: int = 0, images: str = "of these", method: Method = METHODS["rapq"]
) -> Checkpoints:
    start = make_plan(float_model(NAME), calibration(NAME), _settings("rapq"))
    return Checkpoints(folder, start, method, seed, images)


def test_checkpoints_of_another_job_are_not_used(tmp_path, monkeypatch):
    candidates = (Candidate("nearest", 2.0, True), Candidate("learned", 1.0, True))
    result = UnitResult("conv2d", ("conv2d",), candidates, "learned", "|error|^2", 5, 0.1)
    state = {"relu_codes": {"step": torch.tensor(0.1, dtype=torch.float64)}}
    _checkpoints(tmp_path).save(0, state, result)
    assert _checkpoints(tmp_path).load(0) == (state, result)
    with np.load(tmp_path / "unit_0.npz") as file:
        assert file.files == ["facts", "learned/relu_codes/step"]
    assert _checkpoints(tmp_path, seed=1).load(0) is None
    assert _checkpoints(tmp_path, images="of others").load(0) is None
    assert _checkpoints(tmp_path, method=METHODS["qdrop"]).load(0) is None
    for what in ("__version__", "FORM"):  # a file of another form is not misread
        with monkeypatch.context() as patch:
            patch.setattr(unit_state, what, "another")
            assert _checkpoints(tmp_path).load(0) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, arrays: facts.update(result={}),
        lambda facts, arrays: facts["result"].update(candidates=[1]),
        lambda facts, arrays: facts.clear(),
        lambda facts, arrays: arrays.update({"x": np.zeros(3)}),
        lambda facts, arrays: arrays.update({"nearest/a/b": np.zeros(3)}),
        lambda facts, arrays: arrays["nearest/relu_codes/step"].fill(7),
        lambda facts, arrays: arrays.update({"nearest/relu_codes/step": np.array("text")}),
    ],
)
def test_files_of_units_are_used_as_they_were_written_or_not_at_all(tmp_path, change):
    result = UnitResult("u", (), (Candidate("nearest", 2.0, True),), "nearest", "mse", 5, 0.1)
    state = {"relu_codes": {"step": torch.tensor(0.1, dtype=torch.float64)}}
    _checkpoints(tmp_path).save(0, state, result)
    assert _checkpoints(tmp_path).load(0) == (state, result)
    path = tmp_path / "unit_0.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    facts = json.loads(str(arrays.pop("facts")))
    change(facts, arrays)
    np.savez(path, facts=np.array(json.dumps(facts)), **arrays)
    assert _checkpoints(tmp_path).load(0) is None
    np.savez(path, facts=np.array("[" * 100_000))
    assert _checkpoints(tmp_path).load(0) is None


def test_other_images_are_another_job(tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(Checkpoints, "load", lambda self, index: keys.append(self.job))
    start = make_plan(float_model(NAME), calibration(NAME), _settings("qdrop", iterations=1))
    for order in (slice(None), [*range(1, len(images(NAME))), 0]):
        seen = replace(
            calibration(NAME), batches=lambda order=order: iter([(images(NAME)[order],)])
        )
        reconstruct(float_model(NAME), seen, start, checkpoints=tmp_path)
    assert len(set(keys)) == 2


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    _checkpoints(tmp_path)
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        _checkpoints(tmp_path)
    forget_checkpoints(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"
    with pytest.raises(InputError, match="it is a file"):
        _checkpoints(tmp_path / "thesis.txt")


def test_checkpoints_are_forgotten(tmp_path):
    (tmp_path / "a.units").mkdir()
    (tmp_path / "a.units" / "unit_0.npz").write_bytes(b"")
    forget_checkpoints(tmp_path / "a.units")
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_learned_anew(tmp_path):
    files = _checkpoints(tmp_path)
    (tmp_path / "unit_0.npz").write_bytes(b"PK damaged")
    assert files.load(0) is None


def test_the_search_keeps_the_shifts_of_wess():
    name = "mobilenet_rescaled"
    settings = Settings(method=("wess", "rapq"), iterations=1, weight_bits=3)
    start = make_plan(float_model(name), calibration(name), settings)
    plan = reconstruct(float_model(name), calibration(name), start).plan
    for layer, weights in start.weights.items():
        assert len(plan.weights[layer].steps) == len(weights.steps)


def test_a_last_layer_has_no_step_to_learn():
    result = _run("brecq", name="mlp")
    assert [unit.iterations for unit in result.units] == [25, 25, 20]


def test_large_tensors_lie_in_files_and_a_full_disk_is_an_error(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored_rows, "IN_MEMORY", 1000)
    assert plan_to_json(_run("rapq", iterations=RAPQ).plan) == plan_to_json(_rapq().plan)
    monkeypatch.setattr(stored_rows.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"No space left on device.*needs 1 MB.*TMPDIR"):
        _run("rapq", iterations=1)


@pytest.mark.parametrize("method", ["adaround", "rapq"])
def test_values_beyond_what_can_be_learned_from_are_named(method):
    outlier = images(NAME)[:4].clone()
    outlier[1, 0, 2, 2] = 3e30
    found = calibrate(float_model(NAME), [outlier])
    start = make_plan(float_model(NAME), found, _settings(method))
    with pytest.raises(InputError, match=r"value x reaches 3e\+30 in 4 images; methods that"):
        reconstruct(float_model(NAME), found, start)


def test_one_image_is_too_few():
    few = replace(calibration(NAME), samples=1, batches=lambda: iter([(images(NAME)[:1],)]))
    start = make_plan(float_model(NAME), calibration(NAME), _settings("rapq"))
    with pytest.raises(InputError, match=r"1 calibration images.*two or more"):
        reconstruct(float_model(NAME), few, start)


def test_a_network_without_weights_has_nothing_to_learn():
    program = torch.export.export(torch.nn.MaxPool2d(2), (torch.randn(2, 3, 8, 8),))
    model = capture_program(program)
    seen = calibrate(model, [torch.randn(4, 3, 8, 8)])
    result = reconstruct(model, seen, make_plan(model, seen, _settings("rapq")))
    assert result.units == ()
    assert result.network == ()


def test_progress_ends_at_its_total():
    told = []
    _run("qdrop", report=lambda *args: told.append(args))
    assert told[-1][0] == told[-1][1] == 4 * 20
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert "loss" in told[0][2]


def test_the_network_pass_never_moves_away_from_the_float_outputs():
    (network,) = _rapq().network
    losses = [network.loss_before, *(move.loss for move in network.moves)]
    assert losses == sorted(losses, reverse=True)
    assert network.loss_after == losses[-1]
    assert _run("qdrop", iterations=1).network == ()


def test_cost_of_powers_of_two_is_per_layer():
    costs = {cost.layer: cost for cost in _rapq().costs}
    assert list(costs) == ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "conv2d_4", "linear"]
    assert all(cost.weights_used >= 0.99 * cost.weights_free > 0 for cost in costs.values())
    assert costs["linear"].output == ""
    assert _run("qdrop", "free", iterations=1).costs == ()
