"""Adapters: few trained parameters on a frozen model, an adapter a file, all of them in `registry`."""
