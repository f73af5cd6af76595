"""Class numbers of an image folder: from class folders, a list of classes, or a table."""

import csv

import numpy as np
import pytest
from PIL import Image

from targets.errors import InputError
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import TensorSpec

X = (TensorSpec("x", (1, 3, 4, 4)),)
HOW = Preprocessing((0.0,), (1.0,))


@pytest.fixture
def folder(tmp_path):
    """Makes images whose red value is their number."""

    def make(*names):
        for number, name in enumerate(names):
            file = tmp_path / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
        return tmp_path / "set"

    return make


def opened(folder, classes=None, **where):
    return open_data(str(folder), X, HOW, Labelling("classes", classes, **where))


def labels_by_number(source):
    """Label of each image, by the number that it was made with."""
    (batch,) = source.batches(100)
    numbers = np.rint(batch.inputs["x"][:, 0, 0, 0] * 255).astype(int)
    return dict(zip(numbers.tolist(), batch.labels.tolist(), strict=True))


def refuse(pattern, folder, classes=None, **where):
    with pytest.raises(InputError, match=pattern) as error:
        opened(folder, classes, **where)
    assert "\n" not in str(error.value)


def text(tmp_path, content, name="labels.csv"):
    (tmp_path / name).write_text(content)
    return tmp_path / name


@pytest.mark.parametrize(
    "table",
    [
        "file,label\nb.png,7\na.png,3\nc.png,0\n",
        "b.png,7\na.png,3\nc.png,0",
        "\ufefffile,label\r\n./b.png, 7\r\n\r\na.png,3\r\nc.png,0\r\n",
        'label,width,file\n7,4,b.png\n3,4,"a.png"\n0,4,c.png\n',
    ],
    ids=["header", "plain", "windows", "columns"],
)
def test_a_table_gives_each_file_its_label(folder, tmp_path, table):
    source = opened(folder("a.png", "b.png", "c.png"), 10, table=text(tmp_path, table))
    assert source.has_labels
    assert labels_by_number(source) == {0: 3, 1: 7, 2: 0}
    (sample,) = source.samples(1, 1, seed=3)
    index = round(float(sample.inputs["x"][0, 0, 0, 0]) * 255)
    assert sample.labels.tolist() == [[3, 7, 0][index]]


def test_names_of_files_may_hold_anything(folder, tmp_path):
    names = ["a, b.png", 'say "c".png', "d\x1ce.png", "e\u2028.png", "f g.png"]
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(zip(names, range(5), strict=True))
    assert labels_by_number(opened(folder(*names), 5, table=table)) == {n: n for n in range(5)}


def test_a_table_goes_before_folders_and_knows_classes_by_name(folder, tmp_path):
    images = folder("dog/a.png", "cat/a.png")
    classes = text(tmp_path, "cat\nowl\ndog\n", "classes.txt")
    table = text(tmp_path, "dog/a.png,owl\ncat/a.png,2\n")
    assert labels_by_number(opened(images, 3, table=table, names=classes)) == {0: 1, 1: 2}
    assert labels_by_number(opened(images, 3, names=classes)) == {0: 2, 1: 0}


@pytest.mark.parametrize(
    ("table", "pattern"),
    [
        ("a.png,1\n", r"labels.csv has no label for 2 images b.png, c.png of .*set. Add a line"),
        ("a.png,1\nb.png,1\nc.png,1\nd.png,1\n", r"labels.csv:4: .*set has no image 'd.png'"),
        ("a.png,1\nb.png,1\na.png,1\n", r"csv:3: 'a.png' has a label in line 1 already"),
        ("a.png,1\nb.png\n", r"csv:2: \['b.png'\] is no pair. Write one line per image"),
        ("a.png,1\nb.png,cat\n", r"csv:2: label 'cat' is no class. Give .* with --classes"),
        ("a.png,-1\n", r"csv:1: label '-1' is no class"),
        ("a.png,1.0\n", r"csv:1: label '1.0' is no class"),
        ("a.png,10\n", r"csv:1: label 10 is out of range; classes are 0 to 9"),
        ("a.png," + "9" * 5000, r"csv:1: label 9+\.\.\.9+ is out of range"),
        ("", r"labels.csv has no label for 3 images"),
        ('a.png,"1', r"has no label for 2 images|not CSV"),
    ],
    ids=["few", "many", "twice", "pair", "name", "negative", "real", "range", "huge", "empty",
         "quote"],
)  # fmt: skip
def test_wrong_tables_are_refused_with_the_line(folder, tmp_path, table, pattern):
    refuse(pattern, folder("a.png", "b.png", "c.png"), 10, table=text(tmp_path, table))


def test_numbers_beyond_all_measure_of_an_unknown_network(folder, tmp_path):
    table = text(tmp_path, f"a.png,{2**31}")
    refuse("classes are 0 to 2147483647", folder("a.png"), table=table)


def test_tables_that_are_none(folder, tmp_path):
    images = folder("a.png")
    refuse("none.csv: no such file. Write one line per image", images, table=tmp_path / "none.csv")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    refuse("not UTF-8 text", images, table=tmp_path / "bytes")


@pytest.mark.parametrize(
    ("classes", "pattern"),
    [
        ("dog\n", r"classes.txt doesn't name class folder cat of .*set. Add what is missing"),
        ("dog\ncat\ndog\n", r"classes.txt:3: 'dog' is class 0 already"),
        ("dog\n\ncat\n", r"classes.txt:2: is empty"),
        ("\n", "names no class"),
        ("dog\ncat\na\nb\n", "names 4 classes, the network has 3"),
    ],
)
def test_wrong_lists_of_classes(folder, tmp_path, classes, pattern):
    path = text(tmp_path, classes, "classes.txt")
    refuse(pattern, folder("dog/a.png", "cat/a.png"), 3, names=path)


def test_a_list_of_classes_needs_folders_or_a_table(folder, tmp_path):
    classes = text(tmp_path, "dog\n", "classes.txt")
    refuse("has no class folders, so --classes .* changes nothing", folder("a.png"), names=classes)


def test_both_are_for_folders_of_images(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 3, 4, 4), np.float32))
    refuse("--labels t.csv: is for a folder of images", tmp_path / "d.npz", table="t.csv")
    refuse("--classes t: is for a folder of images", tmp_path / "d.npz", names="t")


def test_fewer_class_folders_than_classes_number_nothing(folder, tmp_path):
    """All labels behind a folder that is missing would be wrong."""
    images = folder("dog/a.png", "cat/a.png")
    refuse("has 2 class folders, the network has 3 classes, so .* Give --classes FILE", images, 3)
    assert labels_by_number(opened(images, 2)) == {0: 1, 1: 0}
    assert labels_by_number(opened(images)) == {0: 1, 1: 0}
    (batch,) = open_data(str(images), X, HOW, Labelling(classes=3)).batches(2)
    assert batch.labels is None  # calibration numbers nothing


def test_folders_named_by_number_are_numbered_as_text_and_it_is_said(folder):
    images = folder(*(f"{number}/a.png" for number in range(12)))
    source = opened(images, 12)
    assert labels_by_number(source) == {n: sorted(map(str, range(12))).index(str(n))
                                        for n in range(12)}  # fmt: skip
    (note,) = source.notes
    assert (
        "0 is class 0, 1 is class 1, 10 is class 2, 11 is class 3, 2 is class 4 and so on. " in note
    )
    assert "--classes FILE" in note


@pytest.mark.parametrize("names", [("0", "1", "2"), ("00", "01", "02"), ("a", "b1", "b10", "b2")])
def test_folders_whose_numbers_are_theirs_need_no_word(folder, names):
    assert opened(folder(*(f"{name}/a.png" for name in names)), len(names)).notes == ()


def test_class_folders_without_images_are_counted_and_named(folder):
    images = folder("a/a.png", "c/a.png")
    (images / "b").mkdir()
    source = opened(images, 3)
    assert labels_by_number(source) == {0: 0, 1: 2}
    assert source.notes == (f"{images}: no images in class folder b",)


def test_hidden_files_and_folders_are_no_images(folder, tmp_path):
    images = folder("a/x.png", "a/.thumbnail.png", ".checkpoints/a/x.png")
    assert labels_by_number(opened(images, 1)) == {0: 0}
    table = text(tmp_path, "a/x.png,4\n")
    assert labels_by_number(opened(images, 5, table=table)) == {0: 4}


def test_images_beside_class_folders_are_left_out_and_counted(folder, tmp_path):
    images = folder("a/x.png", "y.png", "b/x.png", "z.png")
    source = opened(images, 2)
    assert labels_by_number(source) == {0: 0, 2: 1}
    words = f"{images}: of the images, 2 beside the class folders are left out"
    assert source.notes == (words,)
    assert open_data(str(images), X, HOW).notes == (words,)
    table = text(tmp_path, "a/x.png,4\ny.png,3\nb/x.png,2\nz.png,1\n")
    source = opened(images, 5, table=table)
    assert labels_by_number(source) == {0: 4, 1: 3, 2: 2, 3: 1}
    assert source.notes == ()


def test_a_folder_without_images_is_no_class_folder_of_a_flat_one(folder):
    images = folder("x.png", "y.png")
    (images / "annotations").mkdir()
    source = opened(images)
    assert (source.count, source.has_labels, source.notes) == (2, False, ())


def test_class_folders_may_be_links(folder, tmp_path):
    images = folder("b/x.png", "b/more/y.png")
    (images / "b").rename(tmp_path / "elsewhere")
    (images / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert labels_by_number(opened(images, 1)) == {0: 0, 1: 0}
    table = text(tmp_path, "b/x.png,4\nb/more/y.png,3\n")
    assert labels_by_number(opened(images, 5, table=table)) == {0: 4, 1: 3}
