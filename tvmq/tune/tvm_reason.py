"""Why TVM couldn't do something, in a line."""

from __future__ import annotations


def tvm_reason(error: Exception) -> str:
    """The last line of what an error says, which is the reason; what is before tells the way."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
