"""Hostile exported programs: archives with changed records, and records with changed contents."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks.hostile import CANARY, ODD_VALUES, PAYLOADS, Hostile, nested
from attacks.hostile.ways import OLD, PLAIN, RICH

Records = dict[str, bytes]
Json = Any

PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
OLD_PROGRAM = "serialized_exported_program.json"

EXPRESSIONS = (
    *PAYLOADS,
    "10**10**10", "s0**9999999", "Pow(Integer(9), Pow(Integer(9), Integer(99999999)))",
    "Pow(Symbol('s77', integer=True), Integer(99999999))", "factorial(99999999)", "99999999!",
    "Integer(10)**Integer(10)**Integer(10)", "LShift(Integer(1), Integer(9999999999))", "1<<10**9",
    f"Symbol('s0', integer=open('{CANARY}','w'))", f"Symbol(open('{CANARY}','w').name)",
    f"Function('f')(open('{CANARY}','w'))", f"f'{{open(\"{CANARY}\",\"w\")}}'",
    f"Integer(open('{CANARY}','w'))", f"sympify(\"open('{CANARY}','w')\")",
    f"parse_expr(\"open('{CANARY}','w')\")", f"(s0 := open('{CANARY}','w'))",
    f"Add(*[open('{CANARY}','w')])", f"Add(**{{'a': open('{CANARY}','w')}})",
    "*".join(f"(a{i}+b{i}+c{i}+d{i})" for i in range(40)), nested("(", ")", 200, "s77"),
    "Mul(" * 90 + "s77" + ")" * 90, "-" * 1_500 + "s77", "+".join(["s77"] * 100_000),
    "Max(" + ",".join(f"a{i}" for i in range(400)) + ")",
    "Mod(Pow(Integer(7), Integer(8)), Float('1e400'))", "zoo", "nan", "Float('nan')", "oo",
    "Rational(1, 0)", "N", "S.Half", "Symbol", "Integer()", "Symbol('s77', integer=True)(3)",
    "Where(True, 1, 2, 3)", "FloorDiv(s77, Integer(0))", "Mod(s77, 0)", "ModularIndexing(s77)",
    "Integer(" + "9" * 5_000 + ")", "1e999", "0x" + "f" * 500, "s77\x00", "s77 if s77 else 1",
)  # fmt: skip

TARGETS = (
    "torch.os.system", "torch.load", "torch.hub.load", "torch.serialization.load",
    "torch.utils.cpp_extension.load", "torch.ops.load_library", "torch._C._jit_set_profiling_mode",
    "_operator.methodcaller", "_operator.attrgetter", "_operator.call", "_operator.pow",
    "_operator.lshift", "_operator.setitem", "_operator.__class__", "math.factorial", "math.comb",
    "torch.ops.aten.from_file.default", "torch.ops.aten.from_file.out",
    "torch.ops.aten.save.default",
    "torch.ops.aten.add.__class__", "torch.ops.aten.__class__.default", "torch.ops.aten.add",
    "torch.ops.aten.__init__.default", "torch.ops.aten.name.upper", "torch.ops.aten.warn.default",
    "torch.ops.aten.add.Tensor.__call__", "torch.ops.prim.Print.default", "torch.ops.prims.add",
    "torch.ops.higher_order.cond", "torch.ops.higher_order.triton_kernel_wrapper_functional",
    "torch.ops.higher_order.call_torchbind", "torch.ops.profiler._record_function_enter.default",
    "torch._dynamo.eval_frame.optimize", "torch.nn.Module", "torch.builtins.exec", "#ns:op", "#",
    "",
    "torch", "torch.", ".", "builtins.exec", "torch.compile", "torch.save", "torch.manual_seed",
    "torch.set_default_device", "torch.testing._internal.common_utils.run_tests",
)  # fmt: skip


class Evil:
    """Leaves the canary behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it."""
        return (open, (CANARY, "w"))


def kinds() -> Iterator[Hostile]:
    """Every kind of hostile program; several have variants to draw from."""
    yield from _in_every_place()
    for index, text in enumerate(EXPRESSIONS):
        yield _changed(f"expression {index} {text[:30]!r}", PLAIN, _set_expression(text))
    for target in TARGETS:
        yield _changed(f"target {target!r}", PLAIN, _set_target(target))
    yield from _programs()
    yield from _texts()
    yield from _weights()
    yield from _archives()
    yield from _bytes()


def honest_records(path: Path) -> Records:
    """The records of an archive without their folder."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = f"{names[0].split('/')[0]}/" if "/" in names[0] else ""
        return {name.removeprefix(root): archive.read(name) for name in names}


def write(path: Path, records: Records | list[tuple[str, bytes]], root: str = "model/") -> None:
    """An archive of these records, in order."""
    items = records.items() if isinstance(records, dict) else records
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in items:
            info = zipfile.ZipInfo(root + name)
            archive.writestr(info, content)


def _places(tree: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Paths in a tree, and what they have in common with others: names of tensors, indices."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*path, key), ""
        yield from _places(value, (*path, key))


def _kind_of(path: tuple[Any, ...]) -> str:
    words = []
    for before, key in zip(("", *path), path, strict=False):
        free = isinstance(key, int) or str(before).endswith(("_values", "config", "_constraints"))
        words.append("*" if free else str(key))
    return "/".join(words)


def _in_every_place() -> Iterator[Hostile]:
    """In each place of a program: code instead of a text, odd values, odd keys."""
    for what in ("text",) * 4 + ("value",) * 4 + ("key", "gone", "more"):
        for record in (PROGRAM, WEIGHTS):
            name = f"a {what} in {record}"

            def make(
                rng: random.Random, honest: Path, path: Path, what: str = what, record: str = record
            ) -> None:
                records = honest_records(honest / rng.choice((RICH, PLAIN)))
                tree = json.loads(records[record])
                by_kind: dict[str, list[tuple[Any, ...]]] = {}
                for place, _ in _places(tree):
                    if what != "text" or isinstance(_at(tree, place), str):
                        by_kind.setdefault(_kind_of(place), []).append(place)
                place = rng.choice(by_kind[rng.choice(sorted(by_kind))])
                _spoil(rng, tree, place, what)
                records[record] = _dumps(tree)
                write(path, records)

            yield Hostile(name, "model", make, varied=True)


def _spoil(rng: random.Random, tree: Json, place: tuple[Any, ...], what: str) -> None:
    parent, key = _at(tree, place[:-1]), place[-1]
    if what == "text":
        parent[key] = rng.choice(PAYLOADS)
    elif what == "value":
        parent[key] = rng.choice(ODD_VALUES)
    elif what == "gone":
        del parent[key]
    elif what == "more":
        extra = rng.choice((*PAYLOADS, *ODD_VALUES))
        if isinstance(parent, dict):
            parent[rng.choice(("as_custom_obj", "as_operator", "guards_code", "x", "type"))] = extra
        else:
            parent.extend([copy.deepcopy(parent[key])] * rng.choice((1, 1_000)))
    elif isinstance(parent, dict):
        parent[rng.choice(PAYLOADS)] = parent.pop(key)
    else:
        parent[key] = {rng.choice(PAYLOADS): parent[key]}


def _at(tree: Json, place: tuple[Any, ...]) -> Json:
    for key in place:
        tree = tree[key]
    return tree


def _dumps(tree: Json) -> bytes:
    return json.dumps(tree).encode(errors="surrogatepass")


def _changed(
    name: str, base: str, change: Callable[[Json, random.Random], None], record: str = PROGRAM
) -> Hostile:
    def make(rng: random.Random, honest: Path, path: Path) -> None:
        records = honest_records(honest / base)
        where = OLD_PROGRAM if base == OLD else record
        tree = json.loads(records[where])
        change(tree, rng)
        records[where] = _dumps(tree)
        write(path, records, "" if base == OLD else "model/")

    return Hostile(name, "model", make)


def _graph(program: Json) -> Json:
    return program["graph_module"]["graph"]


def _set_expression(text: str) -> Callable[[Json, random.Random], None]:
    def change(program: Json, rng: random.Random) -> None:
        values = [v for v in _graph(program)["tensor_values"].values() if v["sizes"]]
        size = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
        rng.choice(values)[rng.choice(("sizes", "strides"))][0] = size
        values[-1]["sizes"][0] = size
        _graph(program)["tensor_values"]["x"]["sizes"][0] = size

    return change


def _set_target(target: str) -> Callable[[Json, random.Random], None]:
    def change(program: Json, rng: random.Random) -> None:
        node = rng.choice(_graph(program)["nodes"])
        node["target"] = target
        if rng.random() < 0.5:
            command = {"as_string": f"touch {CANARY}"}
            node["inputs"] = [{"name": "", "arg": command, "kind": 1}]

    return change


def _programs() -> Iterator[Hostile]:  # noqa: C901 - a list of rules
    def guards(program: Json, rng: random.Random) -> None:
        program["guards_code"] = [rng.choice(PAYLOADS)]

    def custom_object(program: Json, rng: random.Random) -> None:
        _graph(program)["custom_obj_values"]["o"] = {"name": "o", "class_fqn": rng.choice(PAYLOADS)}

    def tree(kind: str, context: str) -> Callable[[Json, random.Random], None]:
        def change(program: Json, rng: random.Random) -> None:
            leaf = {"type": None, "context": None, "children_spec": []}
            spec = [1, {"type": kind, "context": context, "children_spec": [leaf]}]
            call = program["graph_module"]["module_call_graph"][0]["signature"]
            call[rng.choice(("in_spec", "out_spec"))] = json.dumps(spec)

        return change

    def deep_tree(program: Json, rng: random.Random) -> None:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        one = '{"type": "builtins.tuple", "context": "null", "children_spec": ['
        depth = rng.choice((30, 300, 100_000))
        call["out_spec"] = "[1, " + nested(one, "]}", depth) + "]"

    def squares(program: Json, rng: random.Random) -> None:
        graph = _graph(program)
        name = "n"
        x, axis = {"as_tensor": {"name": "x"}}, {"as_int": 0}
        inputs = [{"name": "self", "arg": x, "kind": 1}, {"name": "dim", "arg": axis, "kind": 1}]
        size = {"target": "torch.ops.aten.sym_size.int", "inputs": inputs, "metadata": {}}
        graph["nodes"].insert(0, size | {"outputs": [{"as_sym_int": {"as_name": name}}]})
        graph["sym_int_values"][name] = graph["tensor_values"]["x"]["sizes"][0]
        for i in range(rng.choice((10, 60))):
            argument = {"as_sym_int": {"as_name": name}}
            named = [{"name": n, "arg": argument, "kind": 1} for n in "ab"]
            name = f"square_{i}"
            output = [{"as_sym_int": {"as_name": name}}]
            node = {"target": "_operator.mul", "inputs": named, "outputs": output, "metadata": {}}
            graph["nodes"].insert(1 + i, node)
            graph["sym_int_values"][name] = {"as_int": 2}

    def big(size: int) -> Callable[[Json, random.Random], None]:
        def change(program: Json, rng: random.Random) -> None:
            graph = _graph(program)
            for value in graph["tensor_values"].values():
                value["sizes"] = [
                    {"as_int": size} if one.get("as_int") == 8 else one for one in value["sizes"]
                ]

        return change

    def blow_up(operator: str, names: tuple[str, ...]) -> Callable[[Json, random.Random], None]:
        """Insert an operator whose result is huge by numbers in the file alone."""

        def change(program: Json, rng: random.Random) -> None:
            graph = _graph(program)
            node = next(n for n in graph["nodes"] if "conv2d" in n["target"])
            size = rng.choice((10**4, 10**5, 10**9))
            inputs = [
                {"name": names[0], "arg": {"as_tensor": {"name": "x"}}, "kind": 1},
                {"name": names[1], "arg": {"as_ints": [1, 1, size, size]}, "kind": 1},
            ]
            output = [{"as_tensor": {"name": "blown"}}]
            new = {"target": operator, "inputs": inputs, "outputs": output, "metadata": {}}
            graph["nodes"].insert(graph["nodes"].index(node), new)
            graph["tensor_values"]["blown"] = copy.deepcopy(graph["tensor_values"]["x"])
            node["inputs"][0]["arg"]["as_tensor"]["name"] = "blown"

        return change

    def many_nodes(program: Json, rng: random.Random) -> None:
        graph = _graph(program)
        graph["nodes"] += [copy.copy(graph["nodes"][-1]) for _ in range(60_000)]

    def many_ranges(program: Json, rng: random.Random) -> None:
        bounds = {"min_val": 0, "max_val": None}
        program["range_constraints"] = {rng.choice(("u999999999999", "zuf99999999", "s9")): bounds}

    yield _changed("guards", PLAIN, guards)
    yield _changed("guards in the old form", OLD, guards)
    yield _changed("an object of a class", PLAIN, custom_object)
    default = '{"default_factory_module": "os", "default_factory_name": "system"}'
    yield _changed("a tree of defaultdict", PLAIN, tree("collections.defaultdict", default))
    yield _changed("a tree of namedtuple", PLAIN, tree("collections.namedtuple", '"os.system"'))
    enum = '[{"__enum__": true, "fqn": "this.s", "name": "x"}]'
    yield _changed("a tree with an enum", PLAIN, tree("builtins.dict", enum))
    yield _changed("a tree of a class", PLAIN, tree("os.system", "null"))
    yield _changed("a deep tree", PLAIN, deep_tree)
    yield _changed("sizes squared again and again", PLAIN, squares)
    for size in (10**5, 10**9, 2**62):
        yield _changed(f"an input of {size} squared", PLAIN, big(size))
    yield _changed(
        "a tensor expanded", PLAIN, blow_up("torch.ops.aten.expand.default", ("self", "size"))
    )
    yield _changed(
        "a tensor repeated", PLAIN, blow_up("torch.ops.aten.repeat.default", ("self", "repeats"))
    )
    yield _changed(
        "a tensor padded", PLAIN, blow_up("torch.ops.aten.constant_pad_nd.default", ("self", "pad"))
    )
    yield _changed("many nodes", PLAIN, many_nodes)
    yield _changed("a symbol of a high number", PLAIN, many_ranges)


def _texts() -> Iterator[Hostile]:
    """Contents that are no JSON of a sane size."""
    contents: dict[str, Callable[[bytes], bytes]] = {
        "deep lists": lambda honest: nested("[", "]", 1_000_000).encode(),
        "deep objects": lambda honest: nested('{"graph_module":', "}", 200_000, "1").encode(),
        "deep where a value is dropped": lambda honest: honest.replace(
            b'"guards_code": []', b'"guards_code": ' + nested("[", "]", 100_000).encode()
        ),
        "a long number": lambda honest: honest.replace(
            b'"minor": ', b'"minor": ' + b"9" * 1_000_000
        ),
        "a long exponent": lambda honest: honest.replace(b'"minor": ', b'"minor": 1e999999999'),
        "NaN": lambda honest: honest.replace(b'"minor": ', b'"minor": NaN, "x": '),
        "a key twice": lambda honest: honest.replace(
            b'"guards_code": []', b'"guards_code": [], "guards_code": ["open(\'canary\',\'w\')"]'
        ),
        "many small lists": lambda honest: b"[" + b"[]," * 5_000_000 + b"[]]",
        "one long text": lambda honest: b'"' + b"x" * 30_000_000 + b'"',
        "no text": lambda honest: b"\xff\xfe\x00" * 1_000,
        "UTF-16": lambda honest: honest.decode().encode("utf-16"),
        "a byte order mark": lambda honest: b"\xef\xbb\xbf" + honest,
        "nothing": lambda honest: b"",
        "a number": lambda honest: b"1",
        "null": lambda honest: b"null",
        "half of it": lambda honest: honest[: len(honest) // 2],
        "comments": lambda honest: b"//\n" + honest,
    }
    for record in (PROGRAM, WEIGHTS):
        for name, content in contents.items():

            def make(
                rng: random.Random,
                honest: Path,
                path: Path,
                content: Callable[[bytes], bytes] = content,
                record: str = record,
            ) -> None:
                records = honest_records(honest / PLAIN)
                records[record] = content(records[record])
                write(path, records)

            yield Hostile(f"{name} as {record}", "model", make)


def _weights() -> Iterator[Hostile]:
    def each(change: Callable[[Json], None]) -> Callable[[Json, random.Random], None]:
        def spoil(config: Json, rng: random.Random) -> None:
            change(rng.choice(list(config["config"].values())))

        return spoil

    sizes = [{"as_int": 2**20}, {"as_int": 2**20}]
    changes: dict[str, Callable[[Json], None]] = {
        "a pickled weight": lambda payload: payload.update(use_pickle=True),
        "use_pickle as text": lambda payload: payload.update(use_pickle="yes"),
        "a record outside": lambda payload: payload.update(path_name="../../models/model.json"),
        "an object's record": lambda payload: payload.update(path_name="custom_obj_0"),
        "an opaque record": lambda payload: payload.update(path_name="opaque_obj_0"),
        "a record that is not there": lambda payload: payload.update(path_name="weight_99"),
        "no sizes": lambda payload: payload.update(tensor_meta=None),
        "huge sizes": lambda payload: payload["tensor_meta"].update(sizes=sizes),
        "a view of one number": lambda payload: payload["tensor_meta"].update(
            sizes=sizes, strides=[{"as_int": 0}] * 2
        ),
        "beyond the record": lambda payload: payload["tensor_meta"].update(
            storage_offset={"as_int": 10**9}
        ),
        "negative strides": lambda payload: payload["tensor_meta"].update(
            strides=[{"as_int": -1}] * len(payload["tensor_meta"]["sizes"])
        ),
        "sizes by code": lambda payload: payload["tensor_meta"].update(
            sizes=[{"as_expr": {"expr_str": PAYLOADS[0], "hint": None}}]
        ),
        "another type": lambda payload: payload["tensor_meta"].update(dtype=8),
        "no type": lambda payload: payload["tensor_meta"].update(dtype=99),
        "on a device": lambda payload: payload["tensor_meta"]["device"].update(type="cuda"),
        "on no device": lambda payload: payload["tensor_meta"]["device"].update(type=PAYLOADS[0]),
        "sparse": lambda payload: payload["tensor_meta"].update(layout=1),
    }
    for name, change in changes.items():
        yield _changed(f"weights: {name}", PLAIN, each(change), WEIGHTS)


def _archives() -> Iterator[Hostile]:  # noqa: C901 - a list of rules
    """Records that are too many, have another's name, or hold something else."""
    evil = io.BytesIO()
    import torch

    torch.save(Evil(), evil)
    bare = pickle.dumps(Evil())

    def records(name: str, change: Callable[[Records], list[tuple[str, bytes]]]) -> Hostile:
        def make(rng: random.Random, honest: Path, path: Path) -> None:
            write(path, change(honest_records(honest / PLAIN)))

        return Hostile(f"records: {name}", "model", make)

    def with_more(
        *more: tuple[str, bytes], first: bool = False
    ) -> Callable[[Records], list[tuple[str, bytes]]]:
        def change(honest: Records) -> list[tuple[str, bytes]]:
            return [*more, *honest.items()] if first else [*honest.items(), *more]

        return change

    pickles = {"a torch pickle": evil.getvalue(), "a bare pickle": bare}
    for what, content in pickles.items():
        for name in (
            "data/weights/model.pt", "data/weights/MODEL.PT", "DATA/WEIGHTS/MODEL.pt",
            "data/constants/model.pt", "data/constants/Model.PT", "data/constants/custom_obj_0",
            "data/constants/opaque_obj_0", "data/sample_inputs/model.pt", "data.pkl",
            "extra/../data/weights/model.pt", "data/aotinductor/model/a.so", "models/other.json",
            "models/MODEL.JSON", "models/evil", "data/executorch/x.pte", "constants.pkl",
        ):  # fmt: skip
            for first in (True, False):
                where = "before" if first else "behind"
                yield records(
                    f"{what} as {name} {where} the others", with_more((name, content), first=first)
                )

    def twice(record: str, change: Callable[[Json], None], name: str, first: bool) -> Hostile:
        def make(rng: random.Random, honest: Path, path: Path) -> None:
            own = honest_records(honest / PLAIN)
            tree = json.loads(own[record])
            change(tree)
            more = (name, _dumps(tree))
            write(path, with_more(more, first=first)(own))

        return Hostile(f"records: {name} beside {record}, first: {first}", "model", make)

    def pickled(config: Json) -> None:
        for payload in config["config"].values():
            payload["use_pickle"] = True

    def guarded(program: Json) -> None:
        program["guards_code"] = [PAYLOADS[0]]
        _set_expression(PAYLOADS[0])(program, random.Random(0))

    for first in (True, False):
        yield twice(WEIGHTS, pickled, WEIGHTS, first)
        yield twice(WEIGHTS, pickled, WEIGHTS.upper(), first)
        yield twice(PROGRAM, guarded, PROGRAM, first)
        yield twice(PROGRAM, guarded, PROGRAM.upper(), first)
        yield twice(PROGRAM, guarded, "models/model", first)
        yield twice(PROGRAM, guarded, "models/model.json ", first)
        yield twice(PROGRAM, guarded, "models//model.json", first)
        yield twice(PROGRAM, guarded, "models/sub/model.json", first)
        yield twice(PROGRAM, guarded, "models\\model.json", first)
    for name in ("../../escape", "/etc/escape", "C:\\escape", "a\x00b", "a\nb", "", "x" * 60_000):
        yield records(f"called {name[:20]!r}", with_more((name, b"1")))
    for name, content in (
        ("archive_format", b"PT2"), ("archive_version", b"9" * 10_000), ("archive_version", b"x"),
        ("byteorder", b"big"), ("byteorder", b"middle"),
    ):  # fmt: skip
        yield records(
            f"{name} {content[:9]!r}",
            lambda honest, n=name, c=content: [*(honest | {n: c}).items()],
        )  # type: ignore[misc]

    def gone(rng: random.Random, honest: Path, path: Path) -> None:
        own = honest_records(honest / PLAIN)
        del own[rng.choice(sorted(own))]
        write(path, own)

    def swapped(rng: random.Random, honest: Path, path: Path) -> None:
        own = honest_records(honest / PLAIN)
        a, b = rng.sample(sorted(own), 2)
        own[a], own[b] = own[b], own[a]
        write(path, own)

    def two_roots(rng: random.Random, honest: Path, path: Path) -> None:
        own = honest_records(honest / PLAIN)
        write(path, [(f"{rng.choice('ab')}/{name}", content) for name, content in own.items()], "")

    def old_and_new(rng: random.Random, honest: Path, path: Path) -> None:
        new = [(f"model/{name}", c) for name, c in honest_records(honest / PLAIN).items()]
        old = list(honest_records(honest / OLD).items())
        write(path, rng.choice(([*new, *old], [*old, *new])), "")

    def old_pickles(rng: random.Random, honest: Path, path: Path) -> None:
        own = honest_records(honest / OLD)
        name = rng.choice([name for name in own if name.endswith(".pt")])
        own[name] = rng.choice(list(pickles.values()))
        write(path, own, "")

    def old_json_weights(rng: random.Random, honest: Path, path: Path) -> None:
        own = honest_records(honest / OLD)
        own["serialized_state_dict.json"] = evil.getvalue()
        write(path, own, "")

    yield Hostile("records: one is missing", "model", gone)
    yield Hostile("records: two are swapped", "model", swapped)
    yield Hostile("records: in two folders", "model", two_roots)
    yield Hostile("records: of both forms", "model", old_and_new)
    yield Hostile("records: pickles in the old form", "model", old_pickles)
    yield Hostile("records: pickled weights called JSON in the old form", "model", old_json_weights)

    def deflated(size: int, name: str) -> Hostile:
        def make(rng: random.Random, honest: Path, path: Path) -> None:
            write(path, honest_records(honest / PLAIN))
            with (
                zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
                archive.open(f"model/{name}", "w", force_zip64=True) as record,
            ):
                for _ in range(size >> 20):
                    record.write(bytes(2**20))

        return Hostile(f"records: {size >> 20} MB deflated as {name}", "model", make)

    yield deflated(2**28, "extra/zeros")
    yield deflated(2**28, "data/weights/weight_77")
    yield deflated(2**28, "data/weights/model.pt")

    def many(rng: random.Random, honest: Path, path: Path) -> None:
        more = [(f"extra/{i}", b"") for i in range(30_000)]
        write(path, [*honest_records(honest / PLAIN).items(), *more])

    yield Hostile("records: very many", "model", many)


def _bytes() -> Iterator[Hostile]:
    """Damage of the file itself."""

    def flipped(rng: random.Random, honest: Path, path: Path) -> None:
        data = bytearray((honest / rng.choice((PLAIN, RICH, OLD))).read_bytes())
        for _ in range(rng.choice((1, 10, 1_000))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def index_flipped(rng: random.Random, honest: Path, path: Path) -> None:
        data = bytearray((honest / PLAIN).read_bytes())
        start = data.rindex(b"PK\x01\x02")
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def cut(rng: random.Random, honest: Path, path: Path) -> None:
        data = (honest / PLAIN).read_bytes()
        path.write_bytes(data[: rng.randrange(len(data))])

    def wrapped(rng: random.Random, honest: Path, path: Path) -> None:
        data = (honest / PLAIN).read_bytes()
        noise = rng.randbytes(1_000)
        path.write_bytes(
            rng.choice((noise + data, data + noise, data + data, b"PK\x03\x04" + data))
        )

    def overstated(rng: random.Random, honest: Path, path: Path) -> None:
        """A size in the index, or in front of a record, that is not so."""
        data = bytearray((honest / PLAIN).read_bytes())
        mark, offset = rng.choice(((b"PK\x01\x02", 20), (b"PK\x01\x02", 24), (b"PK\x03\x04", 18)))
        at = data.index(mark, rng.randrange(data.rindex(mark)))
        struct.pack_into("<I", data, at + offset, rng.choice((2**31, 2**32 - 2, 0, 10**6)))
        path.write_bytes(data)

    def renamed(rng: random.Random, honest: Path, path: Path) -> None:
        """A name in front of a record that differs from the one in the index."""
        data = (honest / PLAIN).read_bytes()
        at = data.index(b"models/model.json")
        path.write_bytes(data[:at] + b"models/MODEL.JSON" + data[at + 17 :])

    def encrypted(rng: random.Random, honest: Path, path: Path) -> None:
        data = bytearray((honest / PLAIN).read_bytes())
        for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
            at = data.index(mark)
            data[at + offset] |= 1
        path.write_bytes(data)

    for make in (flipped, index_flipped, cut, wrapped, overstated, renamed, encrypted):
        yield Hostile(f"bytes: {make.__name__.replace('_', ' ')}", "model", make, varied=True)
