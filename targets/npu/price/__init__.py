"""What instructions cost: cycles, what holds them up, bytes, energy."""
