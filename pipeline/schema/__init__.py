"""The command line: its options with their types, and checking it before Hydra does."""
