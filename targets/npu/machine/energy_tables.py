"""The energy part of a machine's description: named tables of picojoules per event."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from targets.errors import SpecError

Picojoules = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


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

    multiply8: Picojoules
    accumulate: Picojoules
    sram_byte: Picojoules
    dram_byte: Picojoules
    requantize_shift: Picojoules
    requantize_multiply: Picojoules
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
        if self.table not in self.tables:
            known = ", ".join(self.tables) or "none"
            raise ValueError(f"energy.table is {self.table!r}, energy.tables has {known}")
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
