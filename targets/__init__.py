"""Hardware: arithmetic, machine descriptions, compilers and simulators. Knows nothing of models."""


def register() -> None:
    """Make the NPU's targets known to TVM; the entry point of the group ``tvm.backends``."""
    from targets.npu.target import register as register_npu

    register_npu()
