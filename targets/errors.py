"""The error tree, and the exit code that each kind of error ends the command line with.

TvmqError                      4  the pipeline can't do this
├── InputError                 2  a file, flag or array of the user is wrong
│   └── SpecError              2  a machine description is wrong
├── UnsupportedError           4  an operator or model that can't be quantized or compiled
├── GateError                  1  a gate failed: accuracy, bit-exactness, layers on the CPU
├── MissingDependencyError     5  a package is missing or of a version that doesn't work
├── ArithmeticRangeError       4  a number does not fit the field or accumulator it must fit
├── CapacityError              4  a tile or tensor does not fit a memory of the machine
├── TimingError                4  a program on which all units wait for each other
└── TrapError                  4  the NPU met an illegal instruction; carries its index

Messages are one sentence of what and where, and one of what to do.
"""


class TvmqError(Exception):
    """Base of all errors that a user of tvmq is meant to see.

    Attributes:
        node: the node of the network that it is about, "" where it is about none; whoever knows
            the user's source by nodes says the place.
    """

    exit_code = 4

    def __init__(self, text: str, *, node: str = "") -> None:
        super().__init__(text)
        self.node = node

    def __str__(self) -> str:
        """The message, without what a terminal would obey: it can quote a file's contents."""
        text = super().__str__()
        if text.replace("\n", "").isprintable():
            return text
        return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class InputError(TvmqError):
    """A file, flag or array that the user gave is wrong."""

    exit_code = 2


class SpecError(InputError):
    """A machine description is wrong; the message names the field."""


class UnsupportedError(TvmqError):
    """An operator or a model that can't be captured, quantized or compiled."""


class GateError(TvmqError):
    """A gate failed: accuracy, bit-exactness, or too many layers on the CPU."""

    exit_code = 1


class MissingDependencyError(TvmqError):
    """A package is missing or of a version that does not work."""

    exit_code = 5


class ArithmeticRangeError(TvmqError):
    """A number does not fit the field, the accumulator or the type that must hold it."""


class CapacityError(TvmqError):
    """A tile or tensor does not fit a memory of the machine."""


class TimingError(TvmqError):
    """A program on which all units wait for each other; the message names what for."""


class TrapError(TvmqError):
    """The NPU met an illegal instruction.

    Attributes:
        index: position of the instruction in the program, in program order.
    """

    def __init__(self, index: int, reason: str, where: str = "") -> None:
        super().__init__(f"{where}instruction {index}: {reason}")
        self.index = index
