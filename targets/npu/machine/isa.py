"""The instruction set: 256-bit words, fields declared once; encoding and decoding read them.

Bits 7:0 opcode, 11:8 pop, 15:12 push (bit u: one token from or to unit u; LD 0, MM 1, VU 2, ST 3),
31:16 flags, then the fields of the instruction in the order of its class. Unused bits are zero, and
decoding rejects others.

A region is 0 constants, 1 arena, 2 inputs, 3 outputs; ``dram_off`` is relative to it, so that
programs relocate. A memory is 0 ACT, 1 WGT, 2 ACC, 3 PAR; ``spm_addr`` is a byte address in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.errors import InputError
from targets.npu.machine.encoding import WORD_BYTES as WORD_BYTES
from targets.npu.machine.encoding import Instruction as Instruction
from targets.npu.machine.encoding import Layout, bits, flag
from targets.npu.machine.encoding import encode as encode
from targets.npu.machine.encoding import fits as fits
from targets.npu.machine.encoding import largest as largest

LD, MM, VU, ST = range(4)
UNIT_NAMES = ("LD", "MM", "VU", "ST")
WIDTHS = (8, 4, 2)
"""Operand widths in bits by their code in the flags."""


@dataclass(frozen=True, kw_only=True)
class Load(Instruction):
    """LD: copy ``z`` planes of ``y`` rows of ``x_bytes`` into a memory, ``padval`` around them.

    ``spm_addr`` is the first byte written, border included. A row is ``pad_x0`` border bytes,
    ``x_bytes`` copied, ``pad_x1`` border bytes; a plane is ``pad_y0`` border rows, ``y`` rows,
    ``pad_y1`` border rows. With ``fill`` set DRAM is not read and every byte is ``padval``. With
    ``transpose`` set a plane becomes a column: byte x of row y of plane z lands at ``spm_addr +
    y * spm_zstride + x * spm_ystride + z``.
    """

    opcode, mnemonic, unit = 0x10, "LD", LD
    fill: int = flag(0)
    transpose: int = flag(1)
    mem: int = bits(2)
    region: int = bits(3)
    padval: int = bits(8)
    spm_addr: int = bits(20)
    dram_off: int = bits(32)
    x_bytes: int = bits(16)
    y: int = bits(12, default=1)
    z: int = bits(8, default=1)
    dram_ystride: int = bits(24)
    dram_zstride: int = bits(24)
    spm_ystride: int = bits(16)
    spm_zstride: int = bits(20)
    pad_x0: int = bits(10)
    pad_x1: int = bits(10)
    pad_y0: int = bits(4)
    pad_y1: int = bits(4)


@dataclass(frozen=True, kw_only=True)
class Store(Instruction):
    """ST: copy ``z`` planes of ``y`` rows of ``x_bytes`` from a memory to DRAM."""

    opcode, mnemonic, unit = 0x18, "ST", ST
    mem: int = bits(2)
    region: int = bits(3)
    spm_addr: int = bits(20)
    dram_off: int = bits(32)
    x_bytes: int = bits(16)
    y: int = bits(12, default=1)
    z: int = bits(8, default=1)
    dram_ystride: int = bits(24)
    dram_zstride: int = bits(24)
    spm_ystride: int = bits(16)
    spm_zstride: int = bits(20)


@dataclass(frozen=True, kw_only=True)
class Gemm(Instruction):
    """GEMM: sums of products over tiles (k2, k1, k0) for pixels (m1, m0).

    ``targets/npu/simulate/sums.py`` is the definition. ``act_bits`` and ``wgt_bits`` are codes
    of ``WIDTHS``. A product P counts as ``(P << (frac - alpha_a)) ± (P << (frac - alpha_b))``;
    ``alpha_sign`` 0 leaves the second term out, 1 adds it, 2 subtracts it.
    """

    opcode, mnemonic, unit = 0x20, "GEMM", MM
    acc_init: int = flag(0)
    act_unsigned: int = flag(1)
    act_bits: int = flag(2, 2)
    wgt_bits: int = flag(4, 2)
    wgt_hold: int = flag(6)
    act_addr: int = bits(20)
    wgt_addr: int = bits(20)
    acc_row: int = bits(13)
    m0: int = bits(10, default=1)
    m1: int = bits(10, default=1)
    as_m0: int = bits(14)
    as_m1: int = bits(17)
    k0: int = bits(8, default=1)
    k1: int = bits(5, default=1)
    k2: int = bits(5, default=1)
    as_k0: int = bits(10)
    as_k1: int = bits(14)
    as_k2: int = bits(17)
    kvalid: int = bits(9)
    nvalid: int = bits(7)
    alpha_a: int = bits(4)
    alpha_b: int = bits(4)
    alpha_sign: int = bits(2)
    frac: int = bits(4)


@dataclass(frozen=True, kw_only=True)
class Depthwise(Instruction):
    """DWC: one channel per column, taps in the order ky, kx, weights [kh][kw][C]."""

    opcode, mnemonic, unit = 0x21, "DWC", MM
    acc_init: int = flag(0)
    act_unsigned: int = flag(1)
    act_bits: int = flag(2, 2)
    wgt_bits: int = flag(4, 2)
    act_addr: int = bits(20)
    wgt_addr: int = bits(20)
    acc_row: int = bits(13)
    m0: int = bits(10, default=1)
    m1: int = bits(10, default=1)
    as_m0: int = bits(14)
    as_m1: int = bits(17)
    kw: int = bits(5, default=1)
    kh: int = bits(5, default=1)
    as_kx: int = bits(14)
    as_ky: int = bits(17)
    nvalid: int = bits(7)
    frac: int = bits(4)


@dataclass(frozen=True, kw_only=True)
class Requantize(Instruction):
    """REQ: sums to codes, with the parameter record of each channel; see ``arithmetic.requantize``.

    ``rounding`` is a ``rounding.RoundingMode``; by borders, ``hi - lo`` of them follow each record,
    or with ``one_row`` the last one, for all channels.
    ``par_addr`` counts 4-byte words. ``zp``, ``lo``, ``hi`` are unsigned bytes with
    ``out_unsigned``, else signed; ``res_zp`` likewise with ``residual_unsigned``.
    """

    opcode, mnemonic, unit = 0x30, "REQ", VU
    rounding: int = flag(0, 3)
    multiply: int = flag(3)
    residual: int = flag(4)
    residual_unsigned: int = flag(5)
    out_unsigned: int = flag(6)
    out_bits: int = flag(7, 2)
    res_bits: int = flag(9, 2)
    one_row: int = flag(11)
    acc_row: int = bits(13)
    m0: int = bits(10, default=1)
    m1: int = bits(10, default=1)
    dst_addr: int = bits(20)
    ds_m0: int = bits(14)
    ds_m1: int = bits(17)
    par_addr: int = bits(12)
    shift: int = bits(6)
    zp: int = bits(8)
    lo: int = bits(8)
    hi: int = bits(8)
    nvalid: int = bits(7)
    res_addr: int = bits(20)
    rs_m0: int = bits(14)
    rs_m1: int = bits(17)
    res_zp: int = bits(8)
    res_mult: int = bits(16, default=1)


@dataclass(frozen=True, kw_only=True)
class Add(Instruction):
    """VADD: ``clamp(half_up(((a-za)*ma << sa) + ((b-zb)*mb << sb), shift) + zo, lo, hi)``."""

    opcode, mnemonic, unit = 0x31, "VADD", VU
    a_unsigned: int = flag(0)
    b_unsigned: int = flag(1)
    out_unsigned: int = flag(2)
    elem_bits: int = flag(3, 2)
    a_addr: int = bits(20)
    b_addr: int = bits(20)
    dst_addr: int = bits(20)
    len: int = bits(20)
    za: int = bits(8)
    zb: int = bits(8)
    zo: int = bits(8)
    sa: int = bits(5)
    sb: int = bits(5)
    shift: int = bits(6)
    lo: int = bits(8)
    hi: int = bits(8)
    ma: int = bits(16, default=1)
    mb: int = bits(16, default=1)


@dataclass(frozen=True, kw_only=True)
class Pool(Instruction):
    """POOL: maximum over windows, or with ``average`` half_up(sum * ``mult``, ``shift``)."""

    opcode, mnemonic, unit = 0x32, "POOL", VU
    average: int = flag(0)
    unsigned: int = flag(1)
    elem_bits: int = flag(2, 2)
    src_addr: int = bits(20)
    dst_addr: int = bits(20)
    c: int = bits(12, default=1)
    ox: int = bits(10, default=1)
    oy: int = bits(10, default=1)
    ss_x: int = bits(14)
    ss_y: int = bits(17)
    ds_x: int = bits(14)
    ds_y: int = bits(17)
    kw: int = bits(5, default=1)
    kh: int = bits(5, default=1)
    stride: int = bits(4, default=1)
    shift: int = bits(6)
    mult: int = bits(16, default=1)
    zp: int = bits(8)


@dataclass(frozen=True, kw_only=True)
class Lut(Instruction):
    """LUT: ``len`` bytes through a table of 256 bytes in PAR (byte address)."""

    opcode, mnemonic, unit = 0x33, "LUT", VU
    src_addr: int = bits(20)
    dst_addr: int = bits(20)
    len: int = bits(20)
    lut_addr: int = bits(14)


@dataclass(frozen=True, kw_only=True)
class Multiply(Instruction):
    """VMUL: ``clamp(half_up(((a-za)*(b-zb) << left) * mult, shift) + zo, lo, hi)`` in rows.

    ``a`` and the output are ``rows`` rows of ``len`` bytes, one behind the other. Row n of ``b``
    begins ``n * bs_row`` bytes on; with ``b_one`` its first byte multiplies the whole row.
    """

    opcode, mnemonic, unit = 0x34, "VMUL", VU
    a_unsigned: int = flag(0)
    b_unsigned: int = flag(1)
    out_unsigned: int = flag(2)
    b_one: int = flag(3)
    a_addr: int = bits(20)
    b_addr: int = bits(20)
    dst_addr: int = bits(20)
    len: int = bits(20)
    rows: int = bits(16, default=1)
    bs_row: int = bits(20)
    za: int = bits(8)
    zb: int = bits(8)
    zo: int = bits(8)
    left: int = bits(4)
    shift: int = bits(6)
    lo: int = bits(8)
    hi: int = bits(8)
    mult: int = bits(16, default=1)


@dataclass(frozen=True, kw_only=True)
class Rows(Instruction):
    """What instructions on rows of bytes share: rows (m1, m0) of ``len`` codes, from ACT to ACT."""

    in_unsigned: int = flag(0)
    out_unsigned: int = flag(1)
    rounding: int = flag(2)
    src_addr: int = bits(20)
    dst_addr: int = bits(20)
    len: int = bits(16, default=1)
    m0: int = bits(12, default=1)
    m1: int = bits(12, default=1)
    ss_m0: int = bits(16)
    ss_m1: int = bits(20)
    ds_m0: int = bits(16)
    ds_m1: int = bits(20)
    par_addr: int = bits(12)
    frac: int = bits(4)
    mult: int = bits(16, default=1)
    shift: int = bits(6)
    zp: int = bits(8)
    lo: int = bits(8)
    hi: int = bits(8)


@dataclass(frozen=True, kw_only=True)
class Softmax(Rows):
    """SOFTMAX: softmax of each row, requantized; exponentials by a table in PAR.

    ``targets/rows.py`` is the definition of the sums; then, as with REQ,
    ``clamp(round((sum << frac) * mult, shift) + zp, lo, hi)``. ``sum << frac`` wraps at 32 bits;
    ``rounding`` is 0 to the floor, 1 half up. ``par_addr`` counts 4-byte words: there lie 256
    uint16, what a code counts that is 0 to 255 below the largest of its row; the first is at least
    2^15.
    """

    opcode, mnemonic, unit = 0x35, "SOFTMAX", VU


@dataclass(frozen=True, kw_only=True)
class Norm(Rows):
    """NORM: norm of each row, requantized; factors and summands per element in PAR.

    ``targets/rows.py`` is the definition of the sums, ``lift`` its j and ``fraction`` its f; what
    follows them is as with SOFTMAX. ``z`` is subtracted from every code, the mean unless ``whole``
    is set. Of the ``cuts + 1`` equal parts of a row, number ``part`` is written, and begins at
    ``dst_addr``. At ``par_addr`` lie E in seven bytes and z in one, then a summand, int32, for each
    code that is written, then a factor, int16, for each. With the largest variance of ``len``
    codes, lifted, E is below 2^52; it is not below 4^(lift + fraction - 15).
    """

    opcode, mnemonic, unit = 0x36, "NORM", VU
    cuts: int = flag(3, 6)
    part: int = flag(9, 6)
    lift: int = bits(5)
    fraction: int = bits(4)
    whole: int = bits(1)


@dataclass(frozen=True, kw_only=True)
class Nop(Instruction):
    """NOP: carries tokens on unit ``on``."""

    opcode, mnemonic = 0x00, "NOP"
    on: int = bits(2)

    @property
    def unit(self) -> int:  # type: ignore[override]
        """The unit it belongs to."""
        return self.on


@dataclass(frozen=True, kw_only=True)
class Halt(Instruction):
    """HALT: wait for all units, check that every token FIFO is empty, end."""

    opcode, mnemonic, unit = 0x01, "HALT", LD


KINDS: tuple[type[Instruction], ...] = (
    *(Load, Store, Gemm, Depthwise, Requantize, Add, Pool, Lut, Multiply, Softmax, Norm),
    *(Nop, Halt),
)
_BY_OPCODE = {kind.opcode: kind for kind in KINDS}
LAYOUTS: dict[type[Instruction], Layout] = {kind: kind.layout() for kind in KINDS}


def decode(word: bytes, index: int = 0) -> Instruction:
    """The instruction of 32 bytes; ``index`` is its position, for the error.

    Raises:
        InputError: the opcode is unknown or an unused bit is set.
    """
    value = int.from_bytes(word, "little")
    kind = _BY_OPCODE.get(value & 0xFF)
    if kind is None:
        msg = f"instruction {index}: unknown opcode 0x{value & 0xFF:02x}"
        raise InputError(msg)
    used, read = 0xFF, {}
    for name, first, width in LAYOUTS[kind]:
        mask = (1 << width) - 1
        read[name] = value >> first & mask
        used |= mask << first
    if value & ~used:
        msg = f"instruction {index}: {kind.mnemonic} has unused bits set (0x{value & ~used:x})"
        raise InputError(msg)
    return kind(**read)


def signed_byte(value: int) -> int:
    """A byte field read as int8."""
    return value - 256 if value >= 128 else value
