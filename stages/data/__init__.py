"""Recovery and calibration rows: each data set is one file that yields prompts and responses; packing is shared."""
