"""Read the NPU's program: the instructions of one layer, what they do, and what they cost.

    python tutorials/03_read_the_program.py

Builds the digits network, takes the program of one convolution apart, runs it in the readable
simulator and accounts for its cycles. About 20 seconds. The manual of the machine is `docs/npu.md`.
"""

# %% A program in the artifact
#
# The NPU executes 256-bit instructions. The compiler encodes them, the artifact stores them, and
# the same bytes are what the simulator decodes and executes, what the profiler prices and what
# `tvmq disasm` prints.

import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from targets.npu.machine import isa
from targets.npu.machine.disassemble import instruction_text
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import price
from targets.npu.simulate.simulator import Simulator
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.profile.profile import profile
from tvmq.run.execute import open_for
from tvmq.run.session import Session

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
OUT = Path("out") / "tutorials"
warnings.simplefilter("ignore", FutureWarning)  # torch's, about itself

request = BuildRequest(
    DIGITS / "digits.pt2",
    OUT / "digits.tvmq",
    calib_data=str(DIGITS / "digits_calib.npz"),
    preprocessing=Preprocessing(mean=(0.3,), std=(0.35,)),
)
artifact = Artifact.load(build(request).artifact)
program = artifact.programs()["program_0.bin"]
print(f"{len(program.instructions)} instructions, {len(program.constants)} bytes of constants")

# %% Four units
#
# LD loads from DRAM, MM multiplies and adds, VU turns sums into codes, ST stores. Each executes its
# own instructions in order, and runs ahead of the others as far as the tokens let it.

units = Counter(isa.UNIT_NAMES[instruction.unit] for instruction in program.instructions)
print(dict(units))
assert set(units) == {"LD", "MM", "VU", "ST"}

# %% One layer
#
# `conv2d_1` is a 3 x 3 convolution, 16 channels to 16, on 16 x 16 pixels.

(span,) = (span for span in program.layers if span.name == "conv2d_1")
print(f"{span.name}: {span.macs:,} MACs, from {span.source}")
layer = span.of(list(enumerate(program.instructions)))
for index, instruction in layer:
    print(f"{index:4} {instruction_text(instruction)}")

# %%
#
# The compiler cut the image into stripes of a few rows:
#
#   LD    the layer's weights and records; "fill" writes the border of zero-point codes around the
#         tensor that the layer makes, for the 3 x 3 layer that reads it next
#   GEMM  k1 x k0 = 3 x 3 tiles, one per kernel position, each 16 input channels by 16 outputs,
#         for m1 x m0 pixels; sums stay in ACC
#   REQ   sums to codes: add bias, shift right, round half up, clamp
#
# The numbers in front jump: what lies between them is of the layers beside this one, whose
# instructions are issued by turns where that saves time. No LD brings the input and no ST takes the
# output away: both tensors are small enough to stay in ACT between the layers. Where they are not,
# an LD per stripe loads its rows of the input (pad_x0, pad_x1, pad_y0 and pad_y1 are the border
# then) and an ST stores the finished rows.
#
# "push VU" on a GEMM gives a token to VU, "pop MM" on the REQ waits for it: read after write. ACC
# holds several stripes, so that the array computes one while VU works on the one before; tokens
# that go the other way, "push MM" on the REQ, say when a place is free again.

gemms = [instruction for _, instruction in layer if isinstance(instruction, isa.Gemm)]
pixels = sum(gemm.m0 * gemm.m1 for gemm in gemms)
assert pixels == 16 * 16
tiles = gemms[0].k0 * gemms[0].k1 * gemms[0].k2
assert pixels * tiles * 16 * 16 == span.macs

# %% The encoding
#
# 32 bytes each; decoding is the exact converse, and refuses unused bits.

word = isa.encode(gemms[0])
print(word.hex())
assert len(word) == 32
assert isa.decode(word) == gemms[0]
for name, first, width in gemms[0].layout()[:6]:
    print(f"  bits {first + width - 1:3}..{first:3}  {name} = {getattr(gemms[0], name)}")

# %% Execute it
#
# `Simulator` is the definition of the machine in NumPy, one short method per instruction. What
# `--device npu` runs is the same machine compiled by TVM, and much quicker. Here the
# NumPy one runs the first image; its input is the image in codes.

spec = load_spec(str(artifact.path("npu.toml")))
images = open_for(artifact, str(DIGITS / "digits_eval.npz"))
batch = next(iter(images.batches(1)))
plan = artifact.read_json("plan.json")
assert plan["values"]["x"]["step"] == "2^-6"
codes = np.clip(np.floor(batch.inputs["x"].astype(np.float64) * 2**6 + 0.5), -128, 127)

simulator = Simulator(spec)
output = simulator.run(program, codes.astype(np.int8).transpose(0, 2, 3, 1))
sums = output.view(np.int32)
print(f"counters: {simulator.counters}")

# %%
#
# The last layer leaves its sums as they are: a logit is a sum times the step of what was read times
# the step of the weights, which is exact. These are the logits that a session gives.

(weight_step,) = plan["layers"]["linear"]["weight_steps"]
step = 2.0 ** int(plan["values"]["avg_pool2d"]["step"][2:]) * 2.0 ** int(weight_step[2:])
logits = Session(artifact, "npu").run(batch.inputs)["linear"]
print(f"the simulator says {sums.argmax()}, the label is {int(batch.labels[0])}")
assert np.array_equal(sums * np.float32(step), logits[0])

# %% What it costs
#
# The timing model runs the program against the clock: four units, their queues, tokens, and a bus.
# Every cycle of every unit has a class, and the classes of a unit add up to the total.

priced = price(program, spec)
(cost,) = (cost for cost in priced.layers if cost.name == "conv2d_1")
for name, classes in zip(isa.UNIT_NAMES, cost.units, strict=True):
    shown = ", ".join(f"{kind} {cycles}" for kind, cycles in classes.items() if cycles)
    print(f"{name}: {shown}")
    assert sum(classes.values()) == cost.cycles
print(f"{cost.cycles} cycles of {priced.timeline.total}, bound by the {cost.bound}")

# %%
#
# These are the cycles from the end of the layer before to the end of this one. 256 multipliers need
# at least macs / 256 cycles, which may be more: a part of them fell into the time of the layer
# before, with which this one overlaps. Of the whole program it is less. What is missing to 100 %
# are layers without much to multiply, decoding, and filling and emptying the array.

least = span.macs / spec.peak_macs_per_cycle
print(f"{span.name} keeps the array busy for at least {least:.0f} cycles")
used = float(priced.ideal_cycles / priced.timeline.total)
print(f"over the whole program the array is used {100 * used:.1f} %")
assert 0 < used < 1

# %% The whole network
#
# `tvmq profile` prints this for every layer. Layers without much to multiply wait for DRAM.

for row in sorted(profile(artifact).operators, key=lambda row: -row.cycles)[:5]:
    print(f"{row.name:10} {row.cycles:6} cycles  {100 * row.utilization:5.1f} %  {row.bound}")
