"""Refinements, a file each: what a learning method is put together from."""
