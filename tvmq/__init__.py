"""Quantize a trained PyTorch model to integers, compile it with TVM for an NPU, and run exactly what was evaluated."""

__version__ = "0.1.0"
