"""Data of all four forms comes out the same, checked and in bounded pieces."""

import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from targets.errors import InputError
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import spread_indices
from tvmq.float_model import TensorSpec

X = (TensorSpec("x", (1, 3, 8, 6)),)
HOW = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
RNG = np.random.default_rng(0)
CLASSES = Labelling("classes")
IMAGES = RNG.integers(0, 256, (23, 8, 6, 3), np.uint8)
LABELS = RNG.integers(0, 4, 23)
FLOATS = (
    (IMAGES.astype(np.float32) / np.float32(255) - np.float32([0.4, 0.5, 0.6]))
    / np.float32([0.2, 0.3, 0.4])
).transpose(0, 3, 1, 2)

MODULE = """
import numpy as np

def arrays():
    for start in range(0, 23, 5):
        yield FLOATS[start : start + 5]

def pairs():
    for start in range(0, 23, 5):
        yield {"x": FLOATS[start : start + 5]}, LABELS[start : start + 5]

def images():
    yield IMAGES, LABELS

def named_images():
    for start in range(0, 23, 5):
        yield {"x": IMAGES[start : start + 5]}
        yield FLOATS[:0]

def leaving():
    raise SystemExit(0)

def stopped():
    raise ValueError("ends in a stop.")

def ragged():
    yield {"x": [[1.0], [1.0, 2.0]]}

def nothing():
    return []

def wrong_key():
    yield {"y": FLOATS}

def failing():
    yield FLOATS
    raise RuntimeError("disk is full")

def fractions():
    yield FLOATS, np.zeros(23)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data.py").write_text(MODULE)
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_data", None)
    found = importlib.import_module("my_data")
    found.FLOATS, found.LABELS, found.IMAGES = FLOATS, LABELS, IMAGES
    yield "my_data"
    sys.modules.pop("my_data", None)


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def whole(source, size=4):
    batches = list(source.batches(size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= size
    assert all(batch.inputs["x"].dtype == np.float32 for batch in batches)
    labels = [batch.labels for batch in batches]
    return (
        np.concatenate([batch.inputs["x"] for batch in batches]),
        None if labels[0] is None else np.concatenate(labels),
    )


def refuse(pattern, spec, *args, inputs=X, use=lambda source: list(source.batches(4)), **options):
    with pytest.raises(InputError, match=pattern) as error:
        use(open_data(spec, inputs, *args, **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_npz_of_images_is_normalized(tmp_path, writer):
    writer(tmp_path / "d.npz", images=IMAGES, labels=LABELS)
    source = open_data(str(tmp_path / "d.npz"), X, HOW, Labelling("classes", 4))
    for size in (1, 4, 23, 100):
        x, labels = whole(source, size)
        np.testing.assert_array_equal(x, FLOATS)
        np.testing.assert_array_equal(labels, LABELS)
    assert source.count == 23


@pytest.mark.parametrize("labels", [LABELS * 0.5, np.zeros((23, 8, 6), np.uint8), FLOATS > 0])
def test_labels_of_any_kind_are_given_by_row(tmp_path, labels):
    spec = save(tmp_path / "d.npz", x=FLOATS, labels=labels.astype(labels.dtype.newbyteorder(">")))
    found = list(open_data(spec, X, None, Labelling("given")).batches(4))
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in found]), labels)
    assert all(batch.labels.dtype == labels.dtype for batch in found)
    assert all(batch.labels.flags.writeable for batch in found)
    sample = list(open_data(spec, X, None, Labelling("given")).samples(7, 3, seed=5))
    rows = spread_indices(23, 7, 5)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in sample]), labels[rows])
    assert all(batch.labels is None for batch in open_data(spec, X).batches(4))
    refuse("labels' has shape .22.* for 23 images; the first axis", save(tmp_path / "e.npz",
           x=FLOATS, labels=labels[1:]), None, Labelling("given"))  # fmt: skip


def test_labels_that_nobody_asks_for_may_be_anything(tmp_path):
    boxes = np.array([None, {"boxes": 1}], object)
    spec = save(tmp_path / "d.npz", x=FLOATS[:2], labels=boxes, names=boxes)
    assert sum(map(len, open_data(spec, X).batches(4))) == 2
    refuse("'labels' holds Python objects", spec, None, CLASSES)


def test_npz_by_input_name_is_taken_as_it_is(tmp_path):
    spec = save(tmp_path / "d.npz", x=FLOATS.astype(np.float64))
    source = open_data(spec, X)
    x, labels = whole(source)
    np.testing.assert_array_equal(x, FLOATS)
    assert labels is None
    with pytest.raises(InputError, match="no labels"):
        source.require_labels()


def test_the_type_of_an_array_decides_and_not_its_name(tmp_path, module):
    """Floats are preprocessed already, 8-bit numbers are images, wherever they come from."""
    path = tmp_path / "d.npz"
    for arrays in ({"x": FLOATS}, {"images": FLOATS}, {"x": IMAGES}, {"images": IMAGES}):
        source = open_data(save(path, **arrays), X, HOW)
        np.testing.assert_array_equal(whole(source)[0], FLOATS)
        assert source.takes_images == (next(iter(arrays.values())) is IMAGES)
    for name in ("arrays", "images", "named_images"):
        np.testing.assert_array_equal(whole(open_data(f"{module}:{name}", X, HOW))[0], FLOATS)


def test_inputs_of_several_types(tmp_path):
    inputs = (*X, TensorSpec("labels", (1, 2)))
    numbers = np.ones((23, 2), np.float32)
    (batch,) = open_data(save(tmp_path / "d.npz", x=IMAGES, labels=numbers), inputs, HOW).batches(
        30
    )
    np.testing.assert_array_equal(batch.inputs["x"], FLOATS)
    np.testing.assert_array_equal(batch.inputs["labels"], numbers)
    assert batch.labels is None
    refuse("'labels' is none, give float32", save(tmp_path / "e.npz", x=IMAGES,
           labels=numbers.astype(np.uint8)), HOW, inputs=inputs)  # fmt: skip


def test_npz_of_two_inputs(tmp_path):
    inputs = (*X, TensorSpec("y", (1, 2)))
    spec = save(tmp_path / "d.npz", x=FLOATS, y=np.ones((23, 2), np.float32))
    (batch,) = open_data(spec, inputs).batches(30)
    assert batch.inputs["y"].shape == (23, 2)
    spec = save(tmp_path / "d.npz", x=FLOATS, y=np.ones((22, 2), np.float32))
    refuse("differ in their number", spec, inputs=inputs)
    refuse("keyed by input name", save(tmp_path / "e.npz", images=IMAGES), HOW, inputs=inputs)


def test_functions(module):
    for name in ("arrays", "pairs", "images"):
        source = open_data(f"{module}:{name}", X, HOW, Labelling("classes", 4))
        for _ in range(2):
            x, labels = whole(source)
            np.testing.assert_array_equal(x, FLOATS)
            assert (labels is None) == (name == "arrays")


def test_wrong_functions(module):
    refuse("yields no data", f"{module}:nothing")
    refuse("missing: x", f"{module}:wrong_key")
    refuse(r"RuntimeError: disk is full \(.*my_data.py:\d+\)", f"{module}:failing")
    refuse("failed with SystemExit: 0", f"{module}:leaving")
    refuse("making an array of what it yields as 'x' failed with ValueError", f"{module}:ragged")
    refuse("class numbers", f"{module}:fractions", None, CLASSES)
    refuse("has no absent; name something that is in it", f"{module}:absent")
    refuse(r"ValueError: ends in a stop \(.*\). Mend it", f"{module}:stopped")
    refuse("can't import", "no_such_module:function")
    refuse("23 images, 50 are wanted", f"{module}:arrays",
           use=lambda source: list(source.samples(50, 4)))  # fmt: skip


@pytest.fixture
def image_folder(tmp_path):
    for label, name in enumerate(["b_dog", "a_cat", "c_owl"]):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(3):
            image = Image.fromarray(IMAGES[3 * label + index])
            image.save(tmp_path / "set" / name / f"{index}.png")
    return tmp_path / "set"


def test_image_folder_classes_are_alphabetical(image_folder):
    source = open_data(str(image_folder), X, HOW, Labelling("classes", 3))
    x, labels = whole(source)
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(x[:3], FLOATS[3:6])
    np.testing.assert_array_equal(x[3:6], FLOATS[0:3])
    refuse("3 class folders, the network has 2", str(image_folder), HOW, Labelling("classes", 2))


def test_images_are_resized_and_cropped(tmp_path):
    (tmp_path / "one").mkdir()
    row, column = np.indices((30, 60), np.uint8)
    Image.fromarray(np.stack([column, row, row], axis=2)).save(tmp_path / "one" / "a.png")
    how = Preprocessing((0.0,), (1.0,), resize=15, crop=10)
    source = open_data(str(tmp_path), (TensorSpec("x", (1, 3, 10, 10)),), how)
    (batch,) = source.batches(1)
    assert batch.inputs["x"].shape == (1, 3, 10, 10)
    # 30x60 becomes 15x30, the crop starts at column 10, whose center is 2 * 10.5 - 0.5.
    columns, rows, _ = batch.inputs["x"][0] * 255
    np.testing.assert_allclose(columns[0], np.arange(10) * 2 + 20.5, atol=0.6)
    np.testing.assert_allclose(rows[:, 0], np.arange(10) * 2 + 4.5, atol=0.6)  # from row 2 on


def test_sizes_beyond_all_measure(tmp_path):
    with pytest.raises(InputError, match="--resize 1000000 is no size; give 1 to 16384 pixels"):
        Preprocessing(resize=1_000_000)
    (tmp_path / "set").mkdir()
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "set" / "long.png")
    how = Preprocessing((0.0,), (1.0,), resize=400, crop=8)
    refuse(r"long.png: 3000x1 with --resize 400 is 1200000x400, beyond", str(tmp_path), how)
    two = np.zeros((1, 8, 6, 2), np.uint8)
    refuse("images of 2 channels can't be resized", save(tmp_path / "d.npz", images=two), how,
           inputs=(TensorSpec("x", (1, 2, 8, 6)),))  # fmt: skip


def test_wrong_image_folders(image_folder, tmp_path):
    refuse("give the --mean and --std", str(image_folder))
    refuse("smaller than --crop 7", str(image_folder), Preprocessing((0.0,), (1.0,), crop=7))
    refuse("comes out as 5x5", str(image_folder), Preprocessing((0.0,), (1.0,), crop=5))
    (image_folder / "a_cat" / "1.png").write_bytes(b"no image")
    refuse(r"a_cat/1\.png can't be read as an image", str(image_folder), HOW)
    (tmp_path / "none").mkdir()
    refuse("has no images", str(tmp_path / "none"), HOW)


def test_truncated_image_is_named(image_folder):
    file = image_folder / "c_owl" / "2.png"
    file.write_bytes(file.read_bytes()[:-40])
    refuse(r"c_owl/2\.png", str(image_folder), HOW)


def test_formats_that_start_programs_are_not_read(image_folder, monkeypatch):
    file = image_folder / "c_owl" / "2.png"
    with file.open("wb") as stream:
        Image.new("RGB", (6, 8)).save(stream, "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_args, **_options: pytest.fail("started"))
    refuse(r"c_owl/2\.png can't be read as an image", str(image_folder), HOW)


def test_wrong_npz(tmp_path):
    path = tmp_path / "d.npz"
    refuse("no such file", str(path))
    path.write_bytes(b"text")
    refuse("not a readable .npz", str(path))
    refuse("has the keys z; wanted are x", save(path, z=FLOATS))
    refuse(r"'x' has shape \[23, 3, 7, 6\], the network takes \[N, 3, 8, 6\]; floats are taken as",
           save(path, x=FLOATS[:, :, :7]))  # fmt: skip
    refuse("the first axis must count", save(path, x=FLOATS[:3].transpose(1, 2, 3, 0)[0]),
           inputs=(TensorSpec("x", (1, 8, 6, 3)),))  # fmt: skip
    refuse("transpose it", save(path, x=FLOATS.transpose(0, 2, 3, 1)))
    refuse("int64", save(path, x=FLOATS.astype(np.int64)))
    refuse("give the --mean and --std", save(path, images=IMAGES))
    refuse("transpose it", save(path, images=IMAGES / 255.0), HOW)
    refuse("beyond float32", save(path, x=FLOATS.astype(np.float64) * 1e300))
    refuse("save an array of numbers", save(path, images=IMAGES[:, :0]), HOW)
    refuse("no such file or folder", "/dev/zero")
    refuse("have 2 values", save(path, images=IMAGES), Preprocessing((0.0, 0.0), (1.0, 1.0)))
    refuse("labels have shape", save(path, x=FLOATS, labels=LABELS[:5]), None, CLASSES)
    refuse("class numbers", save(path, x=FLOATS, labels=LABELS * 1.0), None, CLASSES)
    refuse("label 3 of image", save(path, x=FLOATS, labels=LABELS), None, Labelling("classes", 3))
    refuse(
        "label -1 of image", save(path, x=FLOATS, labels=LABELS - 1 - LABELS.min()), None, CLASSES
    )
    refuse("no images", save(path, x=FLOATS[:0]))
    refuse("Python objects", save(path, x=np.array([None, {}], object)))
    refuse("column by column", save(path, x=np.asfortranarray(FLOATS)))


def npy(shape, descr="<f4", more=b"", version=(1, 0)):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text + more


@pytest.mark.parametrize(
    ("member", "content", "pattern"),
    [
        ("labels", npy("(1000000000000,)", "<i8"), "says that it has shape .1000000000000., but"),
        ("x", npy("(23, 3, 8, 1000000000)"), "but holds 0 bytes"),
        ("x", npy("(-1, 3, 8, 6)"), r"has shape \[-1, 3, 8, 6\]"),
        ("x", npy("(23, 3, 0, 6)"), r"has shape \[23, 3, 0, 6\]"),
        ("labels", npy("()", "<i8", bytes(8)), r"labels have shape \[\] for 23 images"),
        ("labels", npy("(23,)", "|S0"), "save an array of numbers"),
        ("x", npy("(23, 3, 8, 6"), "the header of an array is wrong"),
        ("x", npy("(" + "9" * 5_000 + ",)"), "not a readable .npz"),
        ("x", npy("(1,)" + " " * 60_000), "the header of an array is wrong"),
        ("x", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(2**22), "header of an array is wrong"),
    ],
)
def test_an_npz_holds_what_it_says(tmp_path, member, content, pattern):
    path = save(tmp_path / "d.npz", x=FLOATS, labels=LABELS)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()} | {f"{member}.npy": content}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
    refuse(pattern, path, None, CLASSES)


def test_an_npz_holds_nothing_but_arrays(tmp_path):
    path = save(tmp_path / "d.npz", x=FLOATS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y", npy("(1,)", more=bytes(4)))
    refuse("'y' is no array", path)


def test_rows_and_labels_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tvmq.data.npz_rows._LARGEST_ROW", 2**12)
    refuse("0 MB for one image", save(tmp_path / "d.npz", x=np.zeros((1, 3, 800, 6), np.float32)))
    monkeypatch.setattr("tvmq.data.npz_rows._LARGEST_WHOLE", 2**6)
    refuse("more than labels need", save(tmp_path / "d.npz", x=FLOATS, labels=LABELS),
           None, CLASSES)  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_names_the_image(tmp_path, value):
    bad = FLOATS.copy()
    bad[17, 1, 2, 3] = value
    refuse("image 17 has a NaN.*Remove it", save(tmp_path / "d.npz", x=bad))


def test_truncated_npz_is_refused(tmp_path):
    path = tmp_path / "d.npz"
    save(path, x=FLOATS)
    path.write_bytes(path.read_bytes()[:-100])
    refuse("not a readable .npz", str(path))


def test_samples_are_spread_and_repeatable(tmp_path):
    source = open_data(save(tmp_path / "d.npz", images=IMAGES, labels=LABELS), X, HOW, CLASSES)
    picked = spread_indices(23, 7, 5)
    assert picked == sorted(set(picked))
    assert all(index * 23 // 7 <= pick < (index + 1) * 23 // 7 for index, pick in enumerate(picked))
    for _ in range(2):
        batches = list(source.samples(7, 3, seed=5))
        assert [len(batch) for batch in batches] == [3, 3, 1]
        x = np.concatenate([batch.inputs["x"] for batch in batches])
        np.testing.assert_array_equal(x, FLOATS[picked])
        labels = np.concatenate([batch.labels for batch in batches])
        np.testing.assert_array_equal(labels, LABELS[picked])
    assert spread_indices(23, 7, 6) != picked
    refuse("has 23 images, 24 are wanted", source.spec, HOW,
           use=lambda source: source.samples(24, 4))  # fmt: skip


def test_limit_takes_the_first_images(tmp_path, module):
    for spec in (save(tmp_path / "d.npz", images=IMAGES), f"{module}:images"):
        batches = list(open_data(spec, X, HOW).batches(4, limit=10))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        np.testing.assert_array_equal(batches[-1].inputs["x"], FLOATS[8:10])


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_file(tmp_path, writer):
    images = np.zeros((4000, 32, 32, 3), np.uint8)
    writer(tmp_path / "d.npz", images=images)
    size = images.nbytes
    del images
    source = open_data(str(tmp_path / "d.npz"), (TensorSpec("x", (1, 3, 32, 32)),), HOW)
    tracemalloc.start()
    try:
        assert sum(len(batch) for batch in source.batches(16)) == 4000
        assert sum(len(batch) for batch in source.samples(50, 16)) == 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 4


def test_fingerprint_follows_the_data(tmp_path, image_folder, module):
    path = tmp_path / "d.npz"
    first = open_data(save(path, x=FLOATS), X).fingerprint()
    assert open_data(str(path), X).fingerprint() == first
    assert open_data(save(path, x=FLOATS + 1), X).fingerprint() != first
    before = open_data(str(image_folder), X, HOW).fingerprint()
    (image_folder / "a_cat" / "1.png").unlink()
    assert open_data(str(image_folder), X, HOW).fingerprint() != before
    assert len(open_data(f"{module}:arrays", X).fingerprint()) == 64


def test_preprocessing_survives_the_manifest():
    import json

    how = Preprocessing.from_flags("0.4,0.5,0.6", "0.2,0.3,0.4", 256, 224)
    assert Preprocessing.from_manifest(json.loads(json.dumps(how.to_manifest()))) == how
    assert Preprocessing.from_manifest(Preprocessing().to_manifest()) == Preprocessing()
    with pytest.raises(InputError, match="damaged"):
        Preprocessing.from_manifest({"mean": 1})


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (("0.5", None), "belong together"),
        (("0.5,0.5", "1"), "has 2 values and --std 1"),
        (("0.5", "0"), "--std positive"),
        (("nan", "1"), "finite"),
        (("0", "inf"), "finite"),
        (("1e999", "1"), "finite"),
        (("3e38", "1e-5"), "beyond float32"),
        (("0", "1e-300"), "beyond float32"),
        (("1,,1", "1"), "not of the form"),
        (("a,b", "1,1"), "not of the form"),
        (("0", "1", 0), "--resize 0"),
    ],
)
def test_wrong_preprocessing_flags(flags, pattern):
    with pytest.raises(InputError, match=pattern):
        Preprocessing.from_flags(*flags)


def test_gray_images(tmp_path):
    gray = (TensorSpec("x", (1, 1, 8, 6)),)
    how = Preprocessing((0.0,), (1.0,))
    spec = save(tmp_path / "d.npz", images=IMAGES[..., 0])
    x, _ = whole(open_data(spec, gray, how))
    np.testing.assert_array_equal(x[:, 0], IMAGES[..., 0] / np.float32(255))
