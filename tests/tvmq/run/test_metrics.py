"""Counting right guesses, ties included; and the numbers that any metric returns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import InputError
from tvmq.run.metrics import Accuracy, accuracy, numbers_of, ranks


def test_rank_counts_larger_logits():
    logits = np.array([[3, 9, 5], [3, 9, 5], [3, 9, 5]])
    assert ranks(logits, np.array([0, 1, 2])).tolist() == [2, 0, 1]


def test_among_equals_the_lower_class_is_first_as_in_argmax():
    logits = np.array([[7, 7, 7]] * 3)
    assert ranks(logits, np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert logits[0].argmax() == 0


@given(st.data())
def test_rank_is_the_place_in_a_stable_descending_sort(data):
    rows = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1))
    logits = np.array(rows)
    labels = np.array(
        data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    )
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert ranks(logits, labels).tolist() == expected


def test_batches_add_up():
    accuracy = Accuracy()
    assert (accuracy.top1, accuracy.top5) == (0.0, 0.0)
    accuracy.add(np.eye(10), np.arange(10))  # all right
    accuracy.add(-np.eye(10), np.arange(10))  # all wrong; the label is last of ten
    assert accuracy.n == 20
    assert accuracy.top1 == pytest.approx(0.5)
    assert accuracy.top5 == pytest.approx(0.5)


def test_class_numbers_are_one_guess_each():
    batches = [
        ({"class": np.array([1, 2, 3])}, np.array([1, 2, 0])),
        ({"class": np.array([4])}, np.array([4])),
    ]
    assert accuracy(iter(batches)) == {"top1": 0.75}
    with pytest.raises(InputError, match=r"neither \[N, classes\] nor class numbers"):
        accuracy(iter([({"maps": np.zeros((2, 3, 4))}, np.array([0, 1]))]))


def test_fewer_than_five_classes_are_always_in_the_top_five():
    accuracy = Accuracy()
    accuracy.add(np.array([[0.0, 1.0, 2.0]]), np.array([0]))
    assert (accuracy.top1, accuracy.top5) == (0.0, 1.0)


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.half)],
)
def test_numbers_of_any_kind(value):
    for found in (value, {"mine": value}):
        numbers = numbers_of(found, "mine")
        assert numbers == {"mine": 0.5}
        assert type(numbers["mine"]) is float


def test_whole_numbers_stay_whole():
    numbers = numbers_of({"a": 3, "b": np.int64(4), "c": torch.tensor(5)}, "mine")
    assert numbers == {"a": 3, "b": 4, "c": 5}
    assert all(type(number) is int for number in numbers.values())


@pytest.mark.parametrize(
    ("found", "pattern"),
    [
        (None, "metric mine returned 'mine' as a NoneType. Write it as function"),
        ({"map": torch.zeros(80)}, r"'map' as an array of shape \[80\]"),
        ({"map": "0.5"}, "'map' as a str"),
        ({}, "metric mine returned no number"),
    ],
)
def test_what_is_no_number(found, pattern):
    with pytest.raises(InputError, match=pattern):
        numbers_of(found, "mine")
