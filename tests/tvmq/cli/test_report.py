"""What `tvmq build` says of tensors that are too narrow for their steps."""

from tvmq.artifact.artifact import RangeEntry
from tvmq.cli.report import range_lines


def _entry(**values):
    fields = {
        "kind": "channels",
        "name": "relu",
        "source": "module a",
        "channels": (1, 4),
        "count": 8,
        "steps": (0.25, 1.5),
        "layer": "conv2d_1",
        "lost": 0.345,
        "remedy": "Do something.",
    }
    return RangeEntry(**(fields | values))


def test_a_line_says_what_and_how_much_and_another_what_to_do():
    assert range_lines([_entry()]) == [
        "  too narrow: relu (module a): channels 1, 4 of 8 span 0.25 to 1.5 steps, rounding loses "
        "34 % of what conv2d_1 adds up.",
        "    Do something.",
    ]
    assert range_lines([]) == []


def test_many_channels_are_counted_and_all_of_them_too():
    (line, _) = range_lines([_entry(channels=tuple(range(9)), count=20, source="")])
    assert line.startswith("  too narrow: relu: 9 of 20 channels span")
    (line, _) = range_lines([_entry(channels=(0, 1), count=2, kind="joined", steps=(1.0, 1.0))])
    assert "of what is joined, relu (module a): 2 of 2 channels span 1 steps" in line
    (line, _) = range_lines([_entry(channels=(3,), kind="weights")])
    assert "weights of relu (module a): channel 3 of 8 span" in line
    assert line.endswith("of what conv2d_1 makes.")


def test_the_worst_three_are_named_and_each_remedy_once():
    entries = [_entry(name=f"relu_{i}", lost=i / 10) for i in range(2, 7)]
    lines = range_lines(entries)
    assert [line.split(":")[1].split()[0] for line in lines[:3]] == ["relu_6", "relu_5", "relu_4"]
    assert lines[3:] == ["  and 2 more: ranges in manifest.json", "    Do something."]
