"""The command line: its options with their types, and a check of the arguments before Hydra's."""
