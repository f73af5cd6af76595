"""Relax passes from a quantized float module to integers only (the folder keeps the name the project was given)."""
