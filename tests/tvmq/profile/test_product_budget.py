"""Groups of products by the cycles of a machine."""

from dataclasses import replace

import pytest
from quantization_cases import calibration, float_model

from targets.npu.machine.spec import load_spec
from tvmq.float_model import groups_of
from tvmq.plan.plan import Plan
from tvmq.plan.planner import make_plan
from tvmq.plan.product_groups import product_groups
from tvmq.profile.plan_price import plan_price
from tvmq.profile.product_budget import with_factors, within_cycles
from tvmq.settings import Settings

NAME = "resnet_small"
SPEC = load_spec("e256")


def _plan(**settings: object) -> Plan:
    given = Settings(2, 2, "free", "channel", method=("waps",), product_unit=1)
    return make_plan(float_model(NAME), calibration(NAME), replace(given, **settings))


def _growth(plan: Plan) -> float:
    model = float_model(NAME)
    groups = product_groups(model, plan.weights, plan.settings)
    after = plan_price(model, with_factors(model, plan, groups), SPEC).cycles
    return after / plan_price(model, plan, SPEC).cycles - 1


@pytest.mark.parametrize("budget", [pytest.param(100, marks=pytest.mark.slow), 1.5])
def test_groups_are_as_large_as_cycles_ask(budget):
    """The count of operations alone would allow groups that take more."""
    plan = _plan(product_budget=budget)
    found = within_cycles(float_model(NAME), plan, SPEC)
    before, after = plan.settings.product_unit, found.settings.product_unit
    assert _growth(found) <= budget / 100
    while before < after:
        smaller = replace(plan, settings=replace(plan.settings, product_unit=before))
        assert _growth(smaller) > budget / 100
        before *= 2


def test_groups_that_were_given_stay():
    plan = _plan(product_channels=1)
    assert within_cycles(float_model(NAME), plan, SPEC) == plan
    assert _growth(plan) > plan.settings.product_budget / 100


def test_each_group_of_a_convolution_has_rows_of_its_own():
    """As those have that are found when a unit is reconstructed."""
    model = float_model("grouped")
    settings = Settings(4, 4, "free", "channel", method=("waps",), product_channels=2)
    plan = make_plan(model, calibration("grouped"), settings)
    groups = product_groups(model, plan.weights, settings)
    priced = with_factors(model, plan, groups)
    rows = {name: len(priced.weights[name].products.factors) for name in groups}
    assert rows == {name: groups_of(model.nodes[name]) for name in groups}
    assert max(rows.values()) > 1
    assert plan_price(model, priced, SPEC).cycles > plan_price(model, plan, SPEC).cycles
