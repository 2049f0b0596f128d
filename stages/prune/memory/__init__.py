"""The memory of pruning: its estimate, and weights held in memory as a whole or read from disk a layer at a time."""
