"""How groups are ranked: a criterion a file, all of them in `registry`."""
