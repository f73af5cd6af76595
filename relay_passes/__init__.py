"""Relax passes from a quantized float module to integers only."""
