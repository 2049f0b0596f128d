"""Recovery and calibration rows. Each data set is one file that yields prompts and responses; packing is shared."""
