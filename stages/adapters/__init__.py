"""Adapters: a few trained parameters on a frozen model, one file each, all of them in `registry`."""
