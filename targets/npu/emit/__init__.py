"""From lowered TIR to instructions: hardware loops, addresses, dependency tokens."""
