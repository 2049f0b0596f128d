"""Criteria, by which groups are ranked: one file each, all of them in `registry`."""
