"""Run an artifact on one of its devices, compare the devices, measure accuracy."""
