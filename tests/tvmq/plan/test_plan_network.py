"""Everything that methods change about a network is in its plan, and comes back by it."""

import numpy as np
import pytest
from quantization_cases import calibration, float_model

from tvmq.artifact.artifact import Artifact
from tvmq.plan.plan_network import plan_network
from tvmq.settings import Settings

NAME = "resnet_small"


@pytest.mark.parametrize(
    ("method", "scales", "changes"),
    [
        (("rtn",), "pot", ()),
        (("equalize",), "pot", ("equalization",)),
        (("waps",), "free", ("mixing",)),
        (("rapq", "waps"), "pot", ("scaling", "mixing")),
        (("equalize", "rapq", "waps"), "pot", ("equalization", "scaling", "mixing")),
    ],
)
def test_methods_change_the_network_that_is_planned(method, scales, changes):
    settings = Settings(2, 4, scales, "channel", method=method)
    planned = plan_network(float_model(NAME), calibration(NAME), settings)
    for name in ("equalization", "scaling", "mixing"):
        change = getattr(planned.plan, name)
        assert (change is not None) == (name in changes)
        assert change == getattr(planned.model, name)
    assert planned.plan.fingerprint == planned.model.fingerprint


def test_an_artifact_and_its_plan_build_the_same(tmp_path, tvmq):
    """All three changes at once, learned, on the NPU; the plan's once more, on the CPU."""
    from model_files import save, save_inputs

    model, data = save(NAME, tmp_path), save_inputs(NAME, tmp_path, 16)
    one, other = tmp_path / "a.tvmq", tmp_path / "b.tvmq"
    words = ["--precision", "w2a4", "--granularity", "channel", "--iters", "5"]
    words += ["--method", "equalize,rapq,waps", "--product-channels", "4"]
    done = tvmq("build", model, "-o", one, "--calib-data", data, *words)
    assert done.code == 0
    for change in ("equalization", "scaling", "mixing"):
        assert f"note: {change}: " in done.err
    plan = Artifact.load(one).path("plan.json")
    assert tvmq("build", model, "-o", other, "--plan", plan, "--target", "cpu").code == 0
    files = [Artifact.load(folder).manifest.files for folder in (one, other)]
    assert files[0]["integer.json"] == files[1]["integer.json"]
    golden = [np.load(folder / "golden.npz") for folder in (one, other)]
    assert set(golden[0]) == set(golden[1])
