"""torch sees of an exported program what a plain network needs, whatever else the file holds."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from targets.errors import InputError, TvmqError, UnsupportedError
from tvmq.capture.load_model import load_model

CANARY = "canary"
CODE = f"open({CANARY!r},'w')"
PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Net(nn.Module):
    """Constants, an inner graph, a tree of outputs and arithmetic on sizes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = torch.tensor([2.0])

    def forward(self, image):
        with torch.no_grad():
            y = self.conv(image * self.scale)
        n, c, h, w = y.shape
        return {"maps": y, "rows": [y.reshape(n * c, h * w).clamp(max=float("inf"))]}


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (open, (CANARY, "w"))


@pytest.fixture(scope="module")
def honest():
    """The records of an archive without their folder."""
    batch = {0: torch.export.Dim("n", max=64)}
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(net, (x,), dynamic_shapes=(batch,))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"labels.txt": "cat\ndog"})
    with zipfile.ZipFile(file) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / CANARY).exists()


def write(records, root="model/", name="file.pt2", **options):
    items = records.items() if isinstance(records, dict) else records
    with zipfile.ZipFile(name, "w", **options) as archive:
        for key, content in items:
            archive.writestr(root + key, content)
    return name


def edited(honest, change, record=PROGRAM):
    tree = json.loads(honest[record])
    change(tree)
    return write(honest | {record: json.dumps(tree)})


def old_form(honest, state=None):
    """The archive of torch 2.6 and 2.7."""
    program = load_model(write(honest)).program
    records = {"serialized_exported_program.json": honest[PROGRAM], "version": "8.2"}
    for name, content in (
        ("state_dict", dict(program.state_dict) if state is None else state),
        ("constants", dict(program.constants)),
        ("example_inputs", ((Evil(),), {})),
    ):
        file = io.BytesIO()
        torch.save(content, file)
        records[f"serialized_{name}.pt"] = file.getvalue()
    return records


def refuse(path, pattern, error=InputError):
    with pytest.raises(error, match=pattern) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def graph_of(program):
    return program["graph_module"]["graph"]


def same_network(program, honest):
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(
        program.module()(x), load_model(write(honest, name="honest.pt2")).program.module()(x)
    )


def test_the_copy_is_the_network(honest):
    path = write(honest)
    copy, direct = load_model(path).program, torch.export.load(path)
    assert str(copy.graph) == str(direct.graph)
    assert copy.graph_signature == direct.graph_signature
    assert copy.call_spec == direct.call_spec
    assert str(copy.range_constraints) == str(direct.range_constraints)
    for name, tensor in direct.state_dict.items():
        assert torch.equal(copy.state_dict[name], tensor)
        assert copy.state_dict[name].stride() == tensor.stride()
    for mine, theirs in zip(copy.graph.nodes, direct.graph.nodes, strict=True):
        assert str(mine.meta.get("val")) == str(theirs.meta.get("val"))
        for note in ("stack_trace", "nn_module_stack"):
            assert mine.meta.get(note) == theirs.meta.get(note)


def test_the_form_until_torch_2_7(honest):
    """Its example inputs, which would run code, are left out."""
    same_network(load_model(write(old_form(honest), root="")).program, honest)


def test_weights_as_pickles(honest):
    """torch 2.8 had the new archive with the old weights."""
    old = old_form(honest)
    records = {name: text for name, text in honest.items() if not name.startswith("data/")}
    records["data/weights/model.pt"] = old["serialized_state_dict.pt"]
    records["data/constants/model.pt"] = old["serialized_constants.pt"]
    same_network(load_model(write(records)).program, honest)


def test_guards_are_left_out(honest):
    path = edited(honest, lambda program: program.update(guards_code=[CODE]))
    program = load_model(path).program
    assert program._guards_code == []
    same_network(program, honest)


@pytest.mark.parametrize(
    ("record", "content", "pattern"),
    [
        ("data/weights/other.pt", b"", "no record of a plain exported network"),
        ("data/constants/custom_obj_0", b"", "no record"),
        ("models/other.json", b"{}", "no record"),
        ("models/model.txt", b"{}", "no record"),
        ("models//model.json", b"{}", "no record"),
        ("data/executorch/x.pte", b"", "no record"),
        ("byteorder", b"big", "it says b'big'"),
        ("archive_format", b"PT2", "it says b'PT2'"),
        (PROGRAM.upper(), b"{}", "two records"),
        ("data/weights/MODEL_WEIGHTS_CONFIG.JSON", b"{}", "two records"),
        ("data/weights/model.pt", pickle.dumps(Evil()), "Python objects"),
        ("data/weights/MODEL.PT", pickle.dumps(Evil()), "no record"),
        ("extra/\x1b[2J", b"", "a record is called"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_records_are_an_exact_list(honest, record, content, pattern, first):
    more = [(record, content)]
    others = [(name, text) for name, text in honest.items() if name != record]
    refuse(write([*more, *others] if first else [*others, *more]), pattern)


def test_records_in_two_folders(honest):
    items = [(f"{'ab'[i % 2]}/{name}", text) for i, (name, text) in enumerate(honest.items())]
    refuse(write(items, root=""), "one of 2 folders")


def test_compressed_records(honest):
    refuse(write(honest, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted")


def test_records_larger_than_the_file(honest):
    path = Path(write(honest))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    refuse(path, "larger than the file")


def set_first_size(text):
    def change(program):
        values = graph_of(program)["tensor_values"]
        values["image"]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


def set_tree(kind, context):
    spec = [1, {"type": kind, "context": context, "children_spec": []}]

    def change(program):
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["out_spec"] = json.dumps(spec)

    return change


def set_key(key):
    """Of the keyword arguments, whose names are pasted into source."""
    leaf = {"type": None, "context": None, "children_spec": []}

    def change(program):
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        version, spec = json.loads(call["in_spec"])
        spec["children_spec"][1] |= {"context": json.dumps([key]), "children_spec": [leaf]}
        call["in_spec"] = json.dumps([version, spec])

    return change


def rename_everywhere(old, new):
    def change(tree):
        items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
        for key, value in items:
            if isinstance(value, dict | list):
                change(value)
            elif value == old:
                tree[key] = new
            if key == old:
                tree[new] = tree.pop(key)

    return change


DEFAULT = '{"default_factory_module": "os", "default_factory_name": "system"}'
ENUM = '[{"__enum__": true, "fqn": "this.s", "name": "x"}]'


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (set_first_size(CODE), "is no expression of sizes"),
        (set_first_size("9**9**9**9"), "is no expression of sizes"),
        (set_tree("collections.defaultdict", DEFAULT), "are of the type"),
        (set_tree("os.system", "null"), "are of the type"),
        (set_tree("builtins.dict", ENUM), "not as many keys"),
        (set_key('a"), open("canary", "w"), ("'), "the keys of a dict"),
        (set_key({"__enum__": True, "fqn": "this.s", "name": "x"}), "the keys of a dict"),
        (rename_everywhere("image", f"image=({CODE})"), "is no name of a tensor"),
        (rename_everywhere("image", "lambda"), "is no name of a tensor"),
        (rename_everywhere("input", f"x=({CODE})"), "is no name of an argument"),
        (rename_everywhere("conv.weight", f'a"]({CODE})'), "is no path of a tensor"),
        (rename_everywhere("conv.weight", "__class__.forward"), "is no path of a tensor"),
        (rename_everywhere("submod_1", "forward"), "is no path of a tensor"),
        (lambda program: program.update(verifiers=["x"]), "verifiers"),
        (lambda program: program.update(unknown=1), "unknown"),
        (lambda program: program.update(range_constraints={"u999999999": {}}), "range_constraints"),
        (lambda program: graph_of(program)["nodes"].append({}), "nodes"),
        (lambda program: graph_of(program)["inputs"].append({"as_custom_obj": {}}), "inputs"),
        (lambda program: graph_of(program)["inputs"].append({}), "a value has one kind"),
        (lambda program: graph_of(program).update(custom_obj_values={"o": {}}), "custom_obj"),
    ],
)  # fmt: skip
def test_every_text_has_a_grammar(honest, change, pattern):
    refuse(edited(honest, change), f"record model/models/model.json holds .*{pattern}")


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "_operator.methodcaller",
        "_operator.pow",
        "math.factorial",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.name.upper",
        "torch.ops.aten.relu",
        "torch.ops.higher_order.cond",
        "#ns:op",
        "",
    ],
)
def test_only_operators_on_tensors_are_called(honest, target):
    def change(program):
        graph_of(program)["nodes"][-1]["target"] = target

    refuse(edited(honest, change), "not one of torch's operators on tensors", UnsupportedError)


def test_sizes_are_not_squared_without_end(honest):
    def change(program):
        named = [{"name": "", "arg": {"as_sym_int": {"as_name": "n"}}, "kind": 1}] * 2
        product = {"target": "_operator.mul", "inputs": named, "outputs": [], "metadata": {}}
        graph_of(program)["nodes"] += [product] * 20

    refuse(edited(honest, change), "multiplies sizes", UnsupportedError)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"use_pickle": True}, "use_pickle"),
        ({"path_name": "custom_obj_0"}, "path_name"),
        ({"path_name": "../../models/model.json"}, "path_name"),
        ({"path_name": "weight_99"}, "beyond the record weight_99"),
        ({"tensor_meta": None}, "tensor_meta"),
    ],
)
def test_weights_lie_in_their_records(honest, change, pattern):
    def spoil(config):
        next(iter(config["config"].values())).update(change)

    refuse(edited(honest, spoil, WEIGHTS), pattern)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"sizes": [{"as_int": 10**6}], "strides": [{"as_int": 1}]}, "beyond the record"),
        ({"storage_offset": {"as_int": 10**6}}, "beyond the record"),
        ({"sizes": [{"as_int": 10**9}], "strides": [{"as_int": 0}]}, "tensors of 3814 MB"),
        ({"strides": []}, "beyond the record"),
        ({"dtype": 99}, "beyond the record"),
        ({"sizes": [{"as_int": -1}]}, "sizes"),
    ],
)
def test_weights_are_as_large_as_they_say(honest, change, pattern):
    def spoil(config):
        next(iter(config["config"].values()))["tensor_meta"].update(change)

    refuse(edited(honest, spoil, WEIGHTS), pattern)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, "{}", "1", "", "\ufeff{}", '{"graph_module": ' * 10**4, '"\\ud800"']
)
def test_other_texts(honest, text):
    refuse(write(honest | {PROGRAM: text.encode()}), "model.json holds")


def test_pickles_of_the_old_form(honest):
    for state in (Evil(), {"conv.weight": Evil()}, [1], {1: torch.zeros(1)}):
        refuse(write(old_form(honest, state), root=""), "record serialized_state_dict.pt")


def test_trust_is_for_the_whole_file(honest):
    path = edited(honest, lambda program: program.update(unknown=1))
    with pytest.raises(TvmqError):
        load_model(path)
    assert load_model(path, trust_pickle=True).kind == "ExportedProgram archive"


def test_notes_for_messages_have_no_control_characters(honest):
    def change(program):
        graph_of(program)["nodes"][0]["metadata"]["stack_trace"] = 'File "\x1b[2Ja.py", line 1\n\tb'

    program = load_model(edited(honest, change)).program
    notes = [node.meta.get("stack_trace") or "" for node in program.graph.nodes]
    assert any('File "?[2Ja.py", line 1\n\tb' in note for note in notes)
