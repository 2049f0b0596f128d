"""Objectives: the losses that a recovery minimises, one file each, all of them in `registry`."""
