"""The kinds of layers that the NPU takes: for each its rules, choices, cost, schedule, storage."""
