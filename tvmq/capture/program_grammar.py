"""The grammar of an exported program: every field that a plain network needs, and nothing else.

torch looks names of operators up in its own modules, pastes names of nodes and arguments into
source that it executes, evaluates expressions, imports types that a tree of outputs names, and
unpickles objects. Here every string is of a kind that can't do harm in those places, every number
is bounded, and what this file doesn't know is refused. Fields that nothing here needs (guards,
notes of the exporter) are known, and dropped when a program is written again.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from targets.errors import UnsupportedError
from tvmq.capture.operators_without_rule import QUANTIZED_ALREADY, QUANTIZING
from tvmq.capture.shape_expression import check_expression

MOST_NODES = 50_000
_MOST_PRODUCTS = 16
_DEEPEST_TREE = 24


def _identifier(name: str) -> str:
    """A name that torch pastes into source."""
    if not _is_name(name) or keyword.iskeyword(name):
        raise ValueError(f"{name[:60]!r} is no name of a tensor")
    return name


def _name_or_nothing(name: str) -> str:
    return name and _identifier(name)


def _argument_name(name: str) -> str:
    """An argument of an operator, some of which are called like Python's keywords."""
    if name and not _is_name(name):
        raise ValueError(f"{name[:60]!r} is no name of an argument")
    return name


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier() and len(name) <= 1_000


_PART = re.compile(r"\w[\w \-+:@/]*")
_MODULE = torch.nn.Module()


def _attribute_path(path: str) -> str:
    """Where a tensor hangs in a module: ``layers.0.weight``."""
    for part in path.split("."):
        # Whatever a module has of its own would be overwritten.
        if not _PART.fullmatch(part) or hasattr(_MODULE, part) or len(path) > 1_000:
            raise ValueError(f"{path[:60]!r} is no path of a tensor in a module")
    return path


def _legible(text: str) -> str:
    """Text for messages, without what a terminal would obey."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


_PLAIN_TEXT = re.compile(r"[ -~]{0,1000}")


def _plain_text(text: str) -> str:
    if not _PLAIN_TEXT.fullmatch(text):
        raise ValueError(f"{text[:60]!r} is no plain text")
    return text


def _tree(text: str) -> str:
    """A tree of tuples, lists and dicts, as torch writes the structure of inputs and outputs."""
    try:
        protocol, spec = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{text[:60]!r} is no tree of inputs or outputs") from None
    if protocol != 1:
        raise ValueError(f"a tree of inputs or outputs in the form {protocol!r:.20}")
    return json.dumps([1, _branch(spec, 0)])


def _branch(spec: Any, depth: int) -> dict[str, Any]:
    if not isinstance(spec, dict) or spec.keys() != {"type", "context", "children_spec"}:
        raise ValueError("a tree of inputs or outputs has other entries than type and children")
    kind, context, children = spec["type"], spec["context"], spec["children_spec"]
    if not isinstance(children, list) or depth > _DEEPEST_TREE:
        raise ValueError("a tree of inputs or outputs is too deep, or its children are no list")
    if kind in ("builtins.dict", "collections.OrderedDict"):
        context = _keys(context, len(children))
    elif (kind, context) not in {
        ("builtins.tuple", "null"), ("builtins.list", "null"), (None, None),
    }:  # fmt: skip
        raise ValueError(
            f"inputs or outputs are of the type {kind!r:.60}; tuples, lists and dicts are read"
        )
    return {
        "type": kind,
        "context": context,
        "children_spec": [_branch(child, depth + 1) for child in children],
    }


_KEY = re.compile(r"[\w \-+:@/.,()\[\]]{0,200}")
"""Keys of keyword arguments are pasted into source: no quotes, backslashes or line ends."""


def _keys(context: Any, count: int) -> str:
    keys: Any = json.loads(context) if isinstance(context, str) else None
    if not isinstance(keys, list) or len(keys) != count:
        raise ValueError("a dict of inputs or outputs has not as many keys as values")
    if not all(type(key) is int or (type(key) is str and _KEY.fullmatch(key)) for key in keys):
        raise ValueError("the keys of a dict of inputs or outputs are neither names nor numbers")
    return json.dumps(keys)


_Bool = Annotated[bool, Field(strict=True)]
_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Count = Annotated[int, Field(ge=0, lt=2**48)]
_Small = Annotated[int, Field(ge=0, lt=256)]
_Float = float | Literal["Infinity", "-Infinity", "NaN"]
_Name = Annotated[str, AfterValidator(_identifier)]
_MaybeName = Annotated[str, AfterValidator(_name_or_nothing)]
_ArgumentName = Annotated[str, AfterValidator(_argument_name)]
_Path = Annotated[str, AfterValidator(_attribute_path)]
_Text = Annotated[str, AfterValidator(_legible)]
_Plain = Annotated[str, AfterValidator(_plain_text)]
_Expression = Annotated[str, AfterValidator(check_expression)]
_Tree = Annotated[str, AfterValidator(_tree)]
_Dropped = Field(default=None, exclude=True)
_OTHER: Any = Field(default=None)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _OneOf(_Entry):
    """Exactly one of its fields, which says of which kind the value is."""

    @model_validator(mode="after")
    def _has_one(self) -> _OneOf:
        if len(self.model_fields_set) != 1:
            raise ValueError("a value has one kind")
        return self


class _Device(_Entry):
    type: Annotated[str, Field(pattern="^(cpu|cuda|mps|xpu)$")]
    index: _Small | None = None


class _Hint(_OneOf):
    as_int: _Int = _OTHER
    as_bool: _Bool = _OTHER
    as_float: _Float = _OTHER


class _Symbolic(_Entry):
    expr_str: _Expression
    hint: _Hint | None = None


class _SymInt(_OneOf):
    as_expr: _Symbolic = _OTHER
    as_int: _Int = _OTHER


class _SymFloat(_OneOf):
    as_expr: _Symbolic = _OTHER
    as_float: _Float = _OTHER


class _SymBool(_OneOf):
    as_expr: _Symbolic = _OTHER
    as_bool: _Bool = _OTHER


_Dimensions = Annotated[list[_SymInt], Field(max_length=16)]


class _TensorMeta(_Entry):
    dtype: _Small
    sizes: _Dimensions
    requires_grad: _Bool
    device: _Device
    strides: _Dimensions
    storage_offset: _SymInt
    layout: _Small


class _SymIntArgument(_OneOf):
    as_name: _Name = _OTHER
    as_int: _Int = _OTHER


class _SymFloatArgument(_OneOf):
    as_name: _Name = _OTHER
    as_float: _Float = _OTHER


class _SymBoolArgument(_OneOf):
    as_name: _Name = _OTHER
    as_bool: _Bool = _OTHER


class _TensorArgument(_Entry):
    name: _Name


class _OptionalTensor(_OneOf):
    as_tensor: _TensorArgument = _OTHER
    as_none: _Bool = _OTHER


class _Complex(_Entry):
    real: _Float
    imag: _Float


class _GraphArgument(_Entry):
    name: Annotated[_Name, AfterValidator(_attribute_path)]
    graph: Graph


class _Argument(_OneOf):
    as_none: _Bool = _OTHER
    as_tensor: _TensorArgument = _OTHER
    as_tensors: list[_TensorArgument] = _OTHER
    as_int: _Int = _OTHER
    as_ints: list[_Int] = _OTHER
    as_float: _Float = _OTHER
    as_floats: list[_Float] = _OTHER
    as_string: _Plain = _OTHER
    as_strings: list[_Plain] = _OTHER
    as_sym_int: _SymIntArgument = _OTHER
    as_sym_ints: list[_SymIntArgument] = _OTHER
    as_scalar_type: _Small = _OTHER
    as_memory_format: _Small = _OTHER
    as_layout: _Small = _OTHER
    as_device: _Device = _OTHER
    as_bool: _Bool = _OTHER
    as_bools: list[_Bool] = _OTHER
    as_sym_bool: _SymBoolArgument = _OTHER
    as_sym_bools: list[_SymBoolArgument] = _OTHER
    as_sym_float: _SymFloatArgument = _OTHER
    as_sym_floats: list[_SymFloatArgument] = _OTHER
    as_optional_tensor: _OptionalTensor = _OTHER
    as_optional_tensors: list[_OptionalTensor] = _OTHER
    as_complex: _Complex = _OTHER
    as_graph: _GraphArgument = _OTHER


class _NamedArgument(_Entry):
    name: _ArgumentName
    arg: _Argument
    kind: _Small | None = None


class _Metadata(_Entry):
    stack_trace: _Text = ""
    nn_module_stack: _Text = ""
    source_fn_stack: Any = _Dropped
    torch_fn: Any = _Dropped
    custom: Any = _Dropped
    from_node: Any = _Dropped


class Node(_Entry):
    """A call of an operator."""

    target: str
    inputs: list[_NamedArgument]
    outputs: list[_Argument]
    metadata: _Metadata
    is_hop_single_tensor_return: _Bool | None = None
    name: _Name | None = None


class Graph(_Entry):
    """Nodes in order, and what is known of the values."""

    inputs: list[_Argument]
    outputs: list[_Argument]
    nodes: Annotated[list[Node], Field(max_length=MOST_NODES)]
    tensor_values: dict[_Name, _TensorMeta]
    sym_int_values: dict[_Name, _SymInt]
    sym_bool_values: dict[_Name, _SymBool]
    sym_float_values: dict[_Name, _SymFloat] = {}
    is_single_tensor_return: _Bool = False
    custom_obj_values: Annotated[dict[str, Any], Field(max_length=0)] = {}

    def all_nodes(self) -> Iterator[Node]:
        """Its nodes and those of the graphs inside of them."""
        for node in self.nodes:
            yield node
            for given in node.inputs:
                if "as_graph" in given.arg.model_fields_set:
                    yield from given.arg.as_graph.graph.all_nodes()


class _Constant(_OneOf):
    as_none: _Bool = _OTHER
    as_int: _Int = _OTHER
    as_float: _Float = _OTHER
    as_string: _Plain = _OTHER
    as_bool: _Bool = _OTHER


class _UserSpec(_Entry):
    arg: _Argument


class _ConstantInput(_Entry):
    name: _MaybeName
    value: _Constant


class _TensorSpec(_Entry):
    arg: _TensorArgument


class _ParameterSpec(_TensorSpec):
    parameter_name: _Path


class _BufferSpec(_TensorSpec):
    buffer_name: _Path


class _BufferInput(_BufferSpec):
    persistent: _Bool


class _ConstantSpec(_TensorSpec):
    tensor_constant_name: _Path


class _MutatedInput(_TensorSpec):
    user_input_name: _Name


class _InputSpec(_OneOf):
    user_input: _UserSpec = _OTHER
    parameter: _ParameterSpec = _OTHER
    buffer: _BufferInput = _OTHER
    tensor_constant: _ConstantSpec = _OTHER
    constant_input: _ConstantInput = _OTHER


class _OutputSpec(_OneOf):
    user_output: _UserSpec = _OTHER
    loss_output: _TensorSpec = _OTHER
    buffer_mutation: _BufferSpec = _OTHER
    parameter_mutation: _ParameterSpec = _OTHER
    gradient_to_parameter: _ParameterSpec = _OTHER
    gradient_to_user_input: _MutatedInput = _OTHER
    user_input_mutation: _MutatedInput = _OTHER


class _Signature(_Entry):
    input_specs: list[_InputSpec]
    output_specs: list[_OutputSpec]


class _CallSignature(_Entry):
    inputs: list[_Argument]
    outputs: list[_Argument]
    in_spec: _Tree
    out_spec: _Tree
    forward_arg_names: list[_Name] | None = None


class _ModuleCall(_Entry):
    fqn: str
    signature: _CallSignature | None = None


class _GraphModule(_Entry):
    graph: Graph
    signature: _Signature
    module_call_graph: list[_ModuleCall]
    metadata: Any = _Dropped
    treespec_namedtuple_fields: Any = _Dropped

    @model_validator(mode="after")
    def _keep_the_outermost_call(self) -> _GraphModule:
        self.module_call_graph = [call for call in self.module_call_graph if not call.fqn]
        return self


class _Range(_Entry):
    min_val: _Int | None
    max_val: _Int | None


class _Version(_Entry):
    major: _Small
    minor: _Small


def _range_name(name: str) -> str:
    """A symbol; torch counts up to the number behind a "u"."""
    if not re.fullmatch(r"[A-Za-z_]{1,32}\d{0,4}", name):
        check_expression(name)
        if name.startswith(("u", "z")):
            raise ValueError(f"{name[:60]!r} is no name of a size")
    return name


class Program(_Entry):
    """``models/model.json``, or ``serialized_exported_program.json`` until torch 2.7."""

    graph_module: _GraphModule
    opset_version: dict[_ArgumentName, _Int]
    range_constraints: dict[Annotated[str, AfterValidator(_range_name)], _Range]
    schema_version: _Version
    verifiers: list[Literal["ATEN", "TRAINING", ""]] = []
    torch_version: Annotated[str, Field(pattern=r"^[\w.+<=]{1,40}$")] = "<=2.4"
    guards_code: Any = _Dropped

    def verify_operators(self) -> None:
        """Check that every node calls an operator on tensors, or does arithmetic on sizes.

        Raises:
            UnsupportedError: names those that do something else.
        """
        products = 0
        strange: dict[str, None] = {}  # an ordered set
        for node in self.graph_module.graph.all_nodes():
            if not _is_operator(node.target):
                strange[node.target[:80]] = None
            named = sum("as_sym_int" in given.arg.model_fields_set for given in node.inputs)
            products += node.target == "_operator.mul" and named > 1
        if any(name.startswith(QUANTIZING) for name in strange):
            raise UnsupportedError(str(QUANTIZED_ALREADY))
        if strange:
            raise UnsupportedError(
                f"the network calls {', '.join(map(repr, list(strange)[:5]))}, which is not one of "
                "torch's operators on tensors. Write it in those and export the network again."
            )
        if products > _MOST_PRODUCTS:  # each may square what the one before gave
            raise UnsupportedError(
                f"the network multiplies sizes that are known late {products} times. "
                "Export it with the batch as the only dynamic size."
            )


class PayloadMeta(_Entry):
    """A tensor: in which record its bytes are, and how they are laid out."""

    path_name: Annotated[str, Field(pattern=r"^(weight|tensor)_\d{1,6}$")]
    is_param: _Bool
    use_pickle: Literal[False]
    tensor_meta: StaticTensorMeta


class _StaticSize(_Entry):
    as_int: _Count


_StaticSizes = Annotated[list[_StaticSize], Field(max_length=16)]


class StaticTensorMeta(_Entry):
    """Type, sizes and strides, all of them known."""

    dtype: _Small
    sizes: _StaticSizes
    requires_grad: _Bool
    device: _Device
    strides: _StaticSizes
    storage_offset: _StaticSize
    layout: Literal[7]


class PayloadConfig(_Entry):
    """``data/weights/model_weights_config.json`` and that of the constants."""

    config: dict[_Path, PayloadMeta]


_ATEN = re.compile(r"torch\.ops\.aten\.([a-z_]\w*)\.(\w+)", re.ASCII)
_SCOPES = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
)
# fmt: off
_ON_SIZES = frozenset({
    *(f"_operator.{name}" for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "trunc", "eq", "ne", "lt",
        "le", "gt", "ge", "and_", "or_", "getitem")),
    *(f"torch.sym_{name}" for name in ("int", "float", "min", "max", "not", "ite", "sum")),
    "torch._sym_sqrt", "math.trunc", "math.ceil", "math.floor",
})
_WORDS = frozenset({
    "approximate", "assert_msg", "equation", "indexing", "interpolation", "mode", "norm", "padding",
    "reduce", "rounding_mode", "side",
})
# fmt: on
"""Arguments of ATen's operators that are text; a file's name is none of them."""


def _is_operator(target: str) -> bool:
    if target in _ON_SIZES or target in _SCOPES:
        return True
    match = _ATEN.fullmatch(target)
    packet = match and getattr(torch.ops.aten, match[1], None)
    if not match or not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    if match[2] not in packet.overloads():
        return False
    schema = getattr(packet, match[2])._schema
    full_name = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
    # Those without a kernel are of TorchScript, which has files and sockets.
    return torch._C._dispatch_has_kernel(full_name) and all(
        "str" not in str(argument.type) or argument.name in _WORDS for argument in schema.arguments
    )
