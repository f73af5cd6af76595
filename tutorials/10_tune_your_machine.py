"""Describe your own machine, see what bounds a network on it, and tune the network for it.

    python tutorials/10_tune_your_machine.py

Builds the digits network for a machine with a narrow bus and small memories, which no rule of the
compiler was made for, and searches for better schedules. About a minute. What is searched, and what
is kept of it: `docs/tuning.md`.
"""

# %% A machine of your own
#
# A description is a TOML file. The easiest way to one is to begin with a preset and change what is
# other: here an array of 32 rows and 8 columns, a bus of 4 bytes per cycle and 6 KiB of ACT.

import warnings
from pathlib import Path

import numpy as np
import tomli_w

from targets.npu.machine.spec import load_spec
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.profile.profile import profile
from tvmq.run.session import Session
from tvmq.tune.request import request_of
from tvmq.tune.retune import retune

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
OUT.mkdir(parents=True, exist_ok=True)
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself

content = load_spec("e256").model_dump()
content["name"], content["title"] = "mine", "a narrow bus and little ACT"
content["array"] |= {"rows": 32, "cols": 8}
content["dma"]["bytes_per_cycle"] = 4
content["sram"]["act"]["bytes"] = 6 * 1024
content["sram"]["acc"]["bytes"] = 128 * 4 * 8
(OUT / "mine.toml").write_text(tomli_w.dumps(content))

# %% What bounds the network there
#
# `tvmq build --target npu:mine.toml`, and `tvmq profile`. On this machine most tensors don't fit in
# ACT, so they go through DRAM, over a bus that is slow.

request = BuildRequest(
    DIGITS / "digits.pt2",
    OUT / "mine.tvmq",
    target=f"npu:{OUT / 'mine.toml'}",
    calib_data=str(DIGITS / "digits_calib.npz"),
    preprocessing=Preprocessing(mean=(0.3,), std=(0.35,)),
)
plain = Artifact.load(build(request).artifact)
before = profile(plain)
for row in sorted(before.operators, key=lambda row: -row.cycles)[:5]:
    print(f"{row.name:10} {row.cycles:6} cycles  {100 * row.utilization:5.1f} %  {row.bound}")

# %% Tune it
#
# `tvmq tune mine.tvmq -o tuned.tvmq --trials 80`. Each trial makes the instructions of the program,
# or of some of its layers, under another choice and times them exactly; a change is kept if the
# whole program takes fewer cycles. The numbers that come out of the network stay the same, which is
# compared.

asked = request_of(OUT / "tuned.tvmq", trials=80, seed=0, folders=[])
assert asked is not None
result = retune(OUT / "mine.tvmq", OUT / "tuned.tvmq", asked)
tuned = result.tuned
print(f"{tuned.before:,} cycles by rule, {tuned.after:,} after 80 trials")
for trials, cycles in tuned.found[0].steps:
    print(f"  after {trials:3} trials: {cycles:,}")
assert result.manifest.bit_exact
assert tuned.after < tuned.before

# %% What was chosen
#
# `choices.json` in the artifact: cuts, tensors that stay in ACT or don't, cascades, and layers
# whose instructions are issued earlier or later. What isn't named is as the rule says.

chosen = tuned.choices[0].as_json()
print(f"{len(chosen['cuts'])} layers are cut otherwise")
for name, stays in chosen["stays"].items():
    print(f"{name} {'stays in ACT' if stays else 'goes through DRAM'}")

# %% Before and after
#
# `tvmq profile mine.tvmq tuned.tvmq` puts them side by side.

after = {row.name: row.cycles for row in profile(Artifact.load(OUT / "tuned.tvmq")).operators}
for row in before.operators:
    if row.device == "npu" and after[row.name] != row.cycles:
        print(f"{row.name:10} {row.cycles:6} -> {after[row.name]:6} cycles")

# %% The same numbers, and trials that are kept
#
# The records lie beside the artifact. The same command finds all trials there and makes none again;
# `tvmq build --tuning-records` uses them for the next build of the same network.

images = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
outputs = [
    Session(Artifact.load(OUT / name), "npu").run({"x": images})["linear"]
    for name in ("mine.tvmq", "tuned.tvmq")
]
assert np.array_equal(*outputs)
records = OUT / "tuned.tvmq.tuning" / "database_tuning_record.json"
lines = records.read_text().count("\n")
again = retune(OUT / "mine.tvmq", OUT / "tuned.tvmq", asked)
assert again.tuned.after == tuned.after
assert records.read_text().count("\n") == lines
print(f"{lines} records")
