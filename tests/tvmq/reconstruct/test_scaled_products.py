"""Factors of products: least squares, the descent to those that there are, and whole networks."""

import copy
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model, images, plan

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from targets.product_factors import FACTORS
from tvmq.calibrate.calibrate import calibrate
from tvmq.plan.annotate import annotate
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mix_channels import mix_as
from tvmq.plan.mixed_plan import plan_mixed
from tvmq.plan.plan_file import plan_from_json, plan_to_json, planned_changes
from tvmq.plan.plan_network import plan_network
from tvmq.plan.planner import make_plan
from tvmq.plan.product_groups import product_groups
from tvmq.reconstruct.compensation import compensate_layer
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.methods import Method
from tvmq.reconstruct.product_scale import ProductScale
from tvmq.reconstruct.product_solve import Equations, equations, project, solve
from tvmq.reconstruct.refinement import Refinement
from tvmq.reconstruct.refinements.compensated import CompensatedCodes
from tvmq.reconstruct.refinements.factored_codes import FactoredCodes
from tvmq.reconstruct.refinements.learned import Learned, Phase
from tvmq.reconstruct.unit_work import UnitWork
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

NAME = "resnet_small"
KNOWN = torch.tensor(FACTORS, dtype=torch.float64)


def problem(rows=3, groups=5, seed=0):
    """Random equations whose best factors lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.randn(rows, 200, groups, generator=generator, dtype=torch.float64)
    wanted = 1 + 0.4 * torch.randn(rows, groups, generator=generator, dtype=torch.float64)
    made = (sums @ wanted[..., None])[..., 0] + torch.randn(
        rows, 200, generator=generator, dtype=torch.float64
    )
    return Equations(sums.transpose(1, 2) @ sums, (sums.transpose(1, 2) @ made[..., None])[..., 0])


@pytest.mark.parametrize("seed", range(4))
def test_no_factors_are_better_than_the_solution(seed):
    """Conformance: the closed form never increases the loss."""
    given = problem(seed=seed)
    best = solve(given)
    least = given.loss(best)
    assert (least <= given.loss(torch.ones_like(best)) + 1e-9).all()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        other = best + 0.1 * torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert (given.loss(other) >= least).all()


@pytest.mark.parametrize("seed", range(4))
def test_projection_takes_known_factors_and_is_monotone(seed):
    """Conformance: from no start does the descent make the loss larger, or a single change help."""
    given = problem(seed=seed)
    ones = torch.ones(3, 5, dtype=torch.float64)
    for start in (solve(given), ones, KNOWN[torch.randint(9, (3, 5))]):
        found = project(given, start)
        assert torch.isin(found, KNOWN).all()
        nearest = KNOWN[(start[..., None] - KNOWN).abs().argmin(dim=-1)]
        assert (given.loss(found) <= given.loss(nearest) + 1e-9).all()
        assert (given.loss(found) <= given.loss(ones) + 1e-9).all()
        for g in range(5):
            for factor in FACTORS:
                changed = found.clone()
                changed[:, g] = factor
                assert (given.loss(changed) >= given.loss(found) - 1e-6).all()


def test_the_ridge_draws_to_one():
    nothing = Equations(
        torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    )
    np.testing.assert_allclose(solve(nothing.with_ridge()), 1)
    given = problem()
    free, drawn = solve(given), solve(given.with_ridge())
    assert (drawn - 1).abs().sum() < (free - 1).abs().sum()


@pytest.mark.parametrize(("channels", "outputs"), [(2, 1), (3, 4), (5, 3), (2, 2)])
def test_equations_are_those_of_partial_sums(channels, outputs):
    """The same as of the sums themselves, written out."""
    rng = np.random.default_rng(0)
    K, C, taps, count = 4, 5, 3, 60
    x = rng.normal(size=(count, C * taps))
    weight, y = rng.integers(-2, 3, (K, C, taps)).astype(float), rng.normal(size=(count, K))
    centred, made = x - x.mean(0), y - y.mean(0)
    found = equations(
        torch.tensor(weight),
        torch.tensor(centred.T @ centred / count),
        torch.tensor(centred.T @ made / count),
        channels,
        outputs,
    )
    for row in range(-(-K // outputs)):
        matrix, vector = 0.0, 0.0
        for k in range(row * outputs, min(K, (row + 1) * outputs)):
            inputs = x.reshape(count, C, taps)
            sums = np.stack(
                [
                    np.einsum("nct,ct->n", inputs[:, c : c + channels], weight[k, c : c + channels])
                    for c in range(0, C, channels)
                ],
                axis=1,
            )
            sums = sums - sums.mean(0)
            matrix, vector = matrix + sums.T @ sums / count, vector + sums.T @ made[:, k] / count
        np.testing.assert_allclose(found.matrix[row], matrix, atol=1e-12)
        np.testing.assert_allclose(found.vector[row], vector, atol=1e-12)


def test_a_scale_multiplies_by_group():
    weight = torch.ones(6, 5, 2, 2)
    scale = ProductScale(weight, 2, 2, 2)
    assert torch.equal(scale(weight), weight)
    assert scale.plan("") is None
    factors = KNOWN[torch.arange(12) % 9].reshape(4, 3)
    scale.use(factors)
    scaled = scale(weight)[:, :, 0, 0]
    rows, columns = [0, 0, 1, 2, 2, 3], [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(scaled, factors[rows][:, columns].float())
    other = ProductScale(weight, 2, 2, 2)
    other.hold(scale.held())
    assert torch.equal(other(weight), scale(weight))


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({"product_channels": 4}, {4}),
        ({"product_budget": 100.0, "product_unit": 2}, {2}),
        ({"product_budget": 0.01}, set()),
    ],
)
def test_groups_are_as_small_as_the_budget_allows(changes, groups):
    model = float_model(NAME)
    settings = Settings(2, 2, method=("waps",), **changes)
    found = product_groups(model, plan(NAME, Settings(2, 2)).weights, settings)
    assert set(found.values()) == groups
    assert all(name != "conv2d" for name in found)  # the first layer has 8 bits


def test_the_budget_is_kept_and_spent():
    model, weights = float_model(NAME), plan(NAME, Settings(2, 2)).weights
    counts = []
    for percent in (0.5, 1.5, 5.0):
        settings = Settings(2, 2, method=("waps",), product_budget=percent, product_unit=1)
        groups = product_groups(model, weights, settings)
        shifts = total = 0
        for node in model.graph_module.graph.nodes:
            if node.name not in weights or node.name not in model.nodes or len(node.args) < 2:
                continue
            if str(node.target) not in ("aten.conv2d.default", "aten.linear.default"):
                continue
            C, *taps = model.weight_of(node).shape[1:]
            outputs = np.prod(node.meta["val"].shape[1:])
            total += outputs * C * np.prod(taps, initial=1)
            if node.name in groups:
                shifts += outputs * -(-C // groups[node.name])
        assert shifts <= percent / 100 * total
        counts.append(shifts)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


@pytest.fixture(scope="module")
def learned():
    settings = Settings(2, 4, "free", "channel", method=("waps",), product_channels=4)
    model = float_model(NAME)
    start = make_plan(model, calibration(NAME), settings)
    found = plan_mixed(Planned(model, calibration(NAME), start))
    return found.model, reconstruct(found.model, found.calibration, found.plan)


def test_units_are_closer_with_factors(learned):
    _, reconstruction = learned
    for unit in reconstruction.units:
        nearest, scaled = unit.candidates
        assert (nearest.name, scaled.name) == ("nearest", "scaled products")
        assert unit.held_out_loss <= nearest.loss
    assert any(unit.kept == "scaled products" for unit in reconstruction.units)
    weights = reconstruction.plan.weights
    products = [w.products for w in weights.values() if w.products is not None]
    assert products
    assert {factor for p in products for row in p.factors for factor in row} <= set(FACTORS)
    assert all("held-out loss" in p.reason for p in products)


def test_the_plan_is_read_with_the_mixed_network(learned, tmp_path):
    model, reconstruction = learned
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(reconstruction.plan))
    *_, mixing = planned_changes(path)
    again = mix_as(float_model(NAME), mixing)
    assert again.fingerprint == model.fingerprint
    assert plan_from_json(path.read_text(), again) == reconstruction.plan
    program = annotate(again, reconstruction.plan)
    x = images(NAME)[:3]
    (want,) = run_reference(lower_to_integer(import_torch(program)), {"x": x.numpy()})
    np.testing.assert_array_equal(program(x.double())[0].float().numpy(), want)


def test_an_edited_factor_is_named(learned):
    model, reconstruction = learned
    document = json.loads(plan_to_json(reconstruction.plan))
    name = next(n for n, w in reconstruction.plan.weights.items() if w.products is not None)
    document["layers"][name]["products"]["factors"][0][0] = 0.3
    with pytest.raises(Exception, match=r"0.3 is no factor of products; give one of 0.5, 0.75"):
        plan_from_json(json.dumps(document), model)
    document["layers"][name]["products"]["factors"] = [[0.5]]
    with pytest.raises(Exception, match=rf"layers.{name}.products.factors has 1 numbers; give"):
        plan_from_json(json.dumps(document), model)


@pytest.mark.parametrize(("method", "scales"), [("rapq", "pot"), ("qdrop", "free")])
def test_weights_are_learned_behind_the_factors_that_they_count_by(method, scales):
    """Factors come first and last, and what is built of both are the integers of the graph."""
    settings = Settings(
        2, 4, scales, "channel", method=(method, "waps"), iterations=30, product_channels=4
    )
    planned = plan_network(float_model(NAME), calibration(NAME), settings)
    done = reconstruct(planned.model, planned.calibration, planned.plan)
    names = ["factored codes", "learned", "scaled products"]
    for unit in done.units:
        inner = ["scaled tensors"] if scales == "pot" and len(unit.layers) > 1 else []
        start = ["nearest", *inner, *(["compensated"] if method == "rapq" else [])]
        assert [c.name for c in unit.candidates] == start + names
    assert any(unit.kept in names for unit in done.units)
    assert any(weight.products is not None for weight in done.plan.weights.values())
    assert (done.plan.scaling is not None) == (scales == "pot")
    program = annotate(done.model, done.plan)
    x = images(NAME)[:3]
    (want,) = run_reference(lower_to_integer(import_torch(program)), {"x": x.numpy()})
    np.testing.assert_array_equal(program(x.double())[0].float().numpy(), want)


@pytest.fixture(scope="module")
def unlike():
    """A network with input channels of two layers whose weights are larger than the others."""
    settings = Settings(2, 8, "free", "channel", method=("qdrop", "waps"), product_channels=4)
    model = float_model(NAME)
    model = replace(model, graph_module=copy.deepcopy(model.graph_module))
    for layer in ("conv2d_1", "conv2d_2"):
        model.weight_of(model.nodes[layer])[:, :4] *= 3
    seen = calibrate(model, [images(NAME)])
    return Planned(model, seen, make_plan(model, seen, settings))


def test_weights_of_unlike_groups_get_factors(unlike):
    """By which the unit comes closer than with the best codes alone."""
    method = Method(refinements=(CompensatedCodes(), FactoredCodes()))
    done = reconstruct(unlike.model, unlike.calibration, unlike.plan, method=method)
    _, compensated, factored = done.units[1].candidates
    assert factored.loss < 0.95 * compensated.loss
    products = done.plan.weights["conv2d_1"].products
    assert all(first > max(others) for first, *others in products.factors)


def test_layers_without_factors_get_compensating_codes_too(monkeypatch, unlike):
    seen = []

    def compensate(unit, cache, layer, *rest):
        seen.append(layer)
        compensate_layer(unit, cache, layer, *rest)

    monkeypatch.setattr("tvmq.reconstruct.compensation.compensate_layer", compensate)
    method = Method(refinements=(FactoredCodes(),))
    done = reconstruct(unlike.model, unlike.calibration, unlike.plan, method=method)
    assert set(seen) == {name for unit in done.units for name in unit.layers}
    assert len(seen) > len(set(seen))


def test_weights_are_learned_without_factors_that_held_out_images_speak_against(
    monkeypatch, unlike
):
    def scaled(unit):
        return any(bool((scale.factors != 1).any()) for scale in unit.products.values())

    seen = []

    @dataclass(frozen=True)
    class Behind(Refinement):
        name = "behind"

        def propose(self, work):
            seen.append(scaled(work.unit))

    monkeypatch.setattr(UnitWork, "held_out_loss", lambda work: 1.0 + scaled(work.unit))
    method = Method(refinements=(FactoredCodes(), Behind()))
    reconstruct(unlike.model, unlike.calibration, unlike.plan, method=method)
    assert seen
    assert not any(seen)


class _AtRandom(Refinement):
    """Factors at random."""

    name = "at random"

    def propose(self, work):
        for scale in work.unit.products.values():
            rng = np.random.default_rng(0)
            scale.use(torch.from_numpy(rng.choice(FACTORS, tuple(scale.factors.shape))))


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_training_starts_at_the_weights_that_count(monkeypatch, start):
    """Between the float weights and the codes times factors, or at the former."""
    seen = []

    def train(unit, *_):
        for name, scale in unit.products.items():
            weight, codes = unit.weights[name], unit.weights[name].frozen
            weight.soft = True
            found = scale(weight()).detach()
            weight.soft = False
            near = (scale(codes) - weight.weight).abs() < weight.steps * scale.spread
            off = (found - torch.lerp(weight.weight, scale(codes), start)).abs() / weight.steps
            seen.append(float(off[near & (found.abs() < weight.steps * scale.spread)].max()))
        return 0

    monkeypatch.setattr("tvmq.reconstruct.training.train_unit", train)
    settings = Settings(2, 8, "free", "channel", method=("qdrop", "waps"), product_channels=4)
    model = float_model(NAME)
    plan = make_plan(model, calibration(NAME), settings)
    learned = Learned((Phase(weights=True, steps=True, drop=0.5),), start=start)
    method = Method(refinements=(_AtRandom(), learned))
    reconstruct(model, calibration(NAME), plan, method=method)
    assert max(seen) < 0.01
