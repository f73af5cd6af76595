"""Quantize a trained PyTorch model to integers, compile it for an NPU, run what was evaluated."""

__version__ = "0.1.0"
