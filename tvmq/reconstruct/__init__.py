"""Learned quantization: weights and steps trained unit by unit against the float network."""
