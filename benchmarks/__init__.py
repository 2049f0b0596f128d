"""Benchmarks of our own parts against the tools of the field, each a module: `python -m benchmarks.evaluate`."""
