"""The energy part of a machine's description: named tables of picojoules per event."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from targets.errors import SpecError


class EnergyTable(BaseModel):
    """Picojoules per event.

    Attributes:
        multiply8: of two 8-bit operands; narrower ones scale with both widths.
        accumulate: adding a product to a sum.
        sram_byte: one byte read from or written to a scratchpad.
        dram_byte: one byte read from or written to DRAM.
        requantize_shift: one code of the vector unit without a multiplier.
        requantize_multiply: with one.
        source: where the numbers come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    multiply8: float
    accumulate: float
    sram_byte: float
    dram_byte: float
    requantize_shift: float
    requantize_multiply: float
    source: str


class Energy(BaseModel):
    """Relative energy.

    Attributes:
        table: the one that is used unless another one is asked for.
        tables: named ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    table: str
    tables: dict[str, EnergyTable]

    @model_validator(mode="after")
    def _table_exists(self) -> Energy:
        self.named(self.table)
        return self

    def named(self, name: str = "") -> EnergyTable:
        """A table, by default the description's choice.

        Raises:
            SpecError: there is none of that name.
        """
        chosen = name or self.table
        if chosen not in self.tables:
            known = ", ".join(self.tables) or "none"
            raise SpecError(f"no energy table {chosen!r}: the description has {known}")
        return self.tables[chosen]
