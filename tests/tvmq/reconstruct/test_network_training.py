"""All units together: the outputs come closer, or nothing changes; the same whatever happens."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from model_files import DIGITS
from one_device import nowhere

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from targets.errors import InputError
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.capture.capture import capture, capture_program
from tvmq.cli.report import _reconstruction_lines
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.pages.profile_page import render
from tvmq.plan.annotate import annotate
from tvmq.plan.plan import Plan
from tvmq.plan.plan_file import plan_to_json
from tvmq.plan.plan_network import plan_network
from tvmq.plan.planner import make_plan
from tvmq.reconstruct import network_training, network_work
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.reconstruct.methods import Method
from tvmq.reconstruct.mixed_images import mixed
from tvmq.reconstruct.network_work import NetworkPass, NetworkWork, distance
from tvmq.reconstruct.unit_graph import QuantizedUnit, network_steps
from tvmq.reconstruct.unit_state import Checkpoints
from tvmq.reconstruct.units import find_units
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

IMAGES = 128
FREE = Settings(
    *(2, 2, "free", "channel"), method=("distill",), iterations=1, distill_iterations=60
)
POT = replace(
    FREE,
    scales="pot",
    method=("rapq", "waps", "aquant", "distill"),
    iterations=20,
    distill_iterations=0,
)


@pytest.fixture(scope="module", autouse=True)
def _fast():
    """So that few iterations move something."""
    with pytest.MonkeyPatch.context() as patch:
        for name, rate in (("CODE_RATE", 3e-2), ("BIAS_RATE", 1e-2), ("STEP_RATE", 1e-2)):
            patch.setattr(network_training, name, rate)
        yield


@cache
def model() -> FloatModel:
    """The digits network, which is trained: another one's outputs hardly depend on its images."""
    return capture(DIGITS / "digits.pt2")


@cache
def pictures(file: str, count: int) -> torch.Tensor:
    """float32[count, 1, 28, 28]."""
    normal = Preprocessing(mean=(0.3,), std=(0.35,))
    (batch,) = open_data(str(DIGITS / file), model().inputs, normal).batches(count, limit=count)
    (images,) = batch.inputs.values()
    return torch.as_tensor(images)


@cache
def calibration() -> Calibration:
    """From images of which an eighth is held out."""
    return calibrate(model(), list(pictures("digits_calib.npz", IMAGES).split(64)))


def _run(settings: Settings = FREE, **other) -> Reconstruction:
    planned = plan_network(model(), calibration(), settings)
    return reconstruct(planned.model, planned.calibration, planned.plan, **other)


@cache
def _learned(settings: Settings) -> Reconstruction:
    return _run(settings)


def _work(device: str, settings: Settings) -> NetworkWork:
    plan = make_plan(model(), calibration(), settings)
    steps = network_steps(model(), plan)
    units = [QuantizedUnit(model(), plan, unit, steps) for unit in find_units(model())]
    generator = torch.Generator().manual_seed(0)
    return NetworkWork(
        *(model(), calibration(), units, steps, IMAGES * 7 // 8, settings, generator),
        device=torch.device(device),
    )


def _far(plan: Plan) -> float:
    """Of the annotated network on images that nothing was learned from."""
    x = pictures("digits_eval.npz", 128)
    with torch.no_grad():
        exact = model().graph_module(x)[0]
        quantized = annotate(model(), plan, torch.float32)(x)[0]
    return float(distance(quantized, exact).mean())


def test_the_outputs_come_closer():
    done = _learned(FREE)
    (network,) = done.network
    assert network.learned.accepted
    assert network.loss_after == network.learned.loss < network.loss_before
    assert 0 < network.learned.codes < network.learned.of
    nearest = make_plan(model(), calibration(), FREE)
    assert _far(done.plan) < 0.8 * _far(nearest)
    name = list(nearest.weights)[1]
    assert done.plan.weights[name].reason.endswith(f"-> {network.loss_after:.4g}")
    assert done.plan.weights[name].steps != nearest.weights[name].steps  # free ones are learned
    moved = [n for n, value in done.plan.values.items() if value.step != nearest.values[n].step]
    inputs = {node.name for node in model().graph_module.graph.find_nodes(op="placeholder")}
    assert set(moved) == set(nearest.values) - inputs


def test_what_is_learned_is_what_runs():
    """Behind all that units decide: scaled tensors, factors, borders and powers of two."""
    done = _learned(POT)
    assert [network.name for network in done.network] == ["exponents", "learned together"]
    program = annotate(done.model, done.plan)
    x = pictures("digits_eval.npz", 3)
    (want,) = run_reference(
        lower_to_integer(import_torch(program)), {model().inputs[0].name: x.numpy()}
    )
    np.testing.assert_array_equal(program(x.double())[0].float().numpy(), want)
    steps = [s for w in done.plan.weights.values() if w.codes for s in w.steps]
    steps += [value.step for value in done.plan.values.values()]
    assert all(np.frexp(step)[0] == 0.5 for step in steps)


def test_what_harms_is_refused(monkeypatch):
    monkeypatch.setattr(network_training, "CODE_RATE", 10.0)
    done = _run()
    (network,) = done.network
    assert not network.learned.accepted
    assert network.learned.loss > network.loss_before == network.loss_after
    monkeypatch.setattr(network_training, "surely_smaller", lambda *_: True)
    assert plan_to_json(_run().plan) != plan_to_json(done.plan)
    nothing = _run(FREE, method=Method())
    assert _states(done) == _states(nothing)


def _states(done: Reconstruction):
    weights = {name: (w.codes, w.steps) for name, w in done.plan.weights.items()}
    return weights, {name: value.step for name, value in done.plan.values.items()}


def test_a_finished_pass_is_found_again(tmp_path, monkeypatch):
    done = _run(checkpoints=tmp_path)
    assert plan_to_json(done.plan) == plan_to_json(_learned(FREE).plan)  # a seed decides
    monkeypatch.setattr(network_training, "learn_together", None)
    said = []
    again = _run(checkpoints=tmp_path, note=said.append)
    assert "going on from there" in said[0]
    assert plan_to_json(again.plan) == plan_to_json(done.plan)
    assert again.network == done.network


def test_training_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(network_training, "SAVED_EVERY", 0.0)
    steps = []

    def told(done: int, of: int, words: str) -> None:
        steps.append(done)
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(checkpoints=tmp_path, report=told)
    assert (tmp_path / "training_0.npz").is_file()
    told_again = []
    done = _run(checkpoints=tmp_path, report=lambda done, of, words: told_again.append(words))
    assert [words for words in told_again if "together" in words] == told_again[-3:]
    assert plan_to_json(done.plan) == plan_to_json(_learned(FREE).plan)


def test_files_of_another_kind_are_none(tmp_path):
    files = Checkpoints(tmp_path, make_plan(model(), calibration(), FREE), Method(), 0, "images")
    network, training = tmp_path / "network_0.npz", tmp_path / "training_0.npz"
    files.save_network(0, [], NetworkPass("learned together", 2.0, 1.0))
    training.write_bytes(network.read_bytes())
    assert files.load_training(0) is None
    files.save_training(0, {"iterations": 3})
    assert files.load_training(0) == {"iterations": 3}
    network.write_bytes(training.read_bytes())
    assert files.load_network(0) is None


def test_less_memory_gives_the_same(monkeypatch):
    monkeypatch.setattr(network_training, "MOST_BYTES", 0)
    runs = []
    real = network_training.checkpoint
    monkeypatch.setattr(
        network_training, "checkpoint", lambda *a, **k: runs.append(1) or real(*a, **k)
    )
    done = _run()
    assert len(runs) == FREE.distill_iterations * len(done.units)
    assert plan_to_json(done.plan) == plan_to_json(_learned(FREE).plan)


def test_progress_is_told():
    told = []
    _run(replace(FREE, distill_iterations=20), report=lambda *what: told.append(what))
    last = [(done, of) for done, of, words in told if "all units together" in words]
    assert last == [(10, 20), (20, 20)]


@pytest.mark.parametrize("settings", [FREE, replace(FREE, scales="pot")])
def test_nothing_of_an_iteration_stays_behind(settings):
    """No operator reads tensors of two devices; the device without numbers is always there."""
    work = _work("meta", replace(settings, iterations=2))
    seen = set()
    for unit in work.units:
        unit.graph_module.register_forward_pre_hook(
            lambda module, inputs: seen.add((inputs[0].device.type, inputs[0].requires_grad))
        )
    with nowhere():
        network_training.learn_together(work, "learned together", 2)
    assert ("meta", True) in seen


def test_the_report_and_a_page_say_it():
    facts = _learned(FREE).as_json()
    (network,) = facts["network"]
    learned = network["learned"]
    words = f"{learned['codes']:,} of {learned['of']:,} codes"
    line = _reconstruction_lines(facts)[1]
    assert line.startswith("  learned together: ")
    assert words in line
    page = render("reconstruction.html", reconstruction=facts)
    assert words in page
    assert "Nothing was moved" not in page
    refused = {**network, "learned": {**learned, "accepted": False}}
    facts = {**facts, "network": [refused]}
    assert "not kept" in _reconstruction_lines(facts)[1]
    assert "not kept" in render("reconstruction.html", reconstruction=facts)


def test_any_batch_has_a_loss():
    x = torch.randn(16, 4, 3, 3)
    torch.testing.assert_close(network_training._size(x + 1), x.var(), rtol=0.02, atol=0)
    for constant in (torch.full((1, 1), 5.0), torch.zeros(2, 3)):
        assert 0 < float(network_training._size(constant)) <= 0.26


def test_pieces_of_one_image_are_in_another():
    x = torch.arange(32.0)[:, None, None, None].expand(32, 2, 12, 8).contiguous()
    (result,) = mixed([x], torch.Generator().manual_seed(0))
    assert torch.equal(x[:, 0, 0, 0], torch.arange(32.0))
    some = [i for i in range(32) if bool((result[i] != x[i]).any())]
    assert 8 <= len(some) <= 24
    for i in some:
        rows, columns = torch.nonzero(result[i, 0] != x[i, 0], as_tuple=True)
        tall, wide = (int(a.max() - a.min()) + 1 for a in (rows, columns))
        assert len(rows) == tall * wide
        assert 3 <= tall <= 9
        assert 2 <= wide <= 6
        assert len(result[i].unique()) == 2
        assert torch.equal(result[i, 0], result[i, 1])


def test_several_images_are_mixed_alike_and_anything_else_is_not():
    x, draw = torch.randn(8, 1, 6, 6), torch.Generator
    one, two = mixed([x, 2 * x], draw().manual_seed(0))
    assert torch.equal(two, 2 * one)
    assert not torch.equal(one, x)
    for other in (torch.randn(8, 5), torch.randn(8, 4, 5)):
        assert mixed([x, other], draw().manual_seed(0)) == [x, other]


class Twice(torch.nn.Module):
    """Its input and what a layer makes of it are held in one step; an output is given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.last(torch.cat([x, self.first(x)], 1))
        return y, y


@cache
def twice() -> tuple[FloatModel, Calibration]:
    torch.manual_seed(0)
    images = torch.randn(16, 4, 8, 8)
    free = ({0: torch.export.Dim("n")},)
    model = capture_program(torch.export.export(Twice().eval(), (images,), dynamic_shapes=free))
    return model, calibrate(model, [images])


@pytest.mark.parametrize("method", [("distill",), ("rapq",)])
def test_an_output_may_be_given_twice(method):
    model, known = twice()
    scales = "pot" if method == ("rapq",) else "free"
    settings = Settings(4, 4, scales, "channel", method=method, iterations=2)
    done = reconstruct(model, known, make_plan(model, known, settings))
    assert len(done.network) == 1


def test_an_input_whose_step_is_a_unit_s_moves_along():
    model, known = twice()
    settings = Settings(4, 4, "free", "channel", first_last_bits=4, method=("distill",))
    plan = make_plan(model, known, settings)
    steps = network_steps(model, plan)
    assert any(steps["x"] is steps[name] for name in steps if name != "x")
    units = [QuantizedUnit(model, plan, unit, steps) for unit in find_units(model)]
    work = NetworkWork(
        *(model, known, units, steps, 14, settings, torch.Generator().manual_seed(0)),
        device=torch.device("meta"),
    )
    with nowhere():
        network_training.learn_together(work, "together", 1)


def test_what_could_never_be_kept_is_refused_first(monkeypatch):
    model, _ = twice()
    few = calibrate(model, [torch.randn(15, 4, 8, 8)])
    settings = replace(FREE, distill_iterations=1)
    with pytest.raises(InputError, match=r"and 1 can be compared: .* so give 16 or more"):
        reconstruct(model, few, make_plan(model, few, settings))
    model, known = twice()
    monkeypatch.setattr(network_work, "MAX_BYTES", 1)
    with pytest.raises(InputError, match="too large for more, so leave it out"):
        reconstruct(model, known, make_plan(model, known, settings))
