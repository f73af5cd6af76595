"""The host: exact CPU kernels for what the NPU does not take."""
