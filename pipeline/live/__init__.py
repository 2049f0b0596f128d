"""Pruning, recovering and judging a model that is in memory: the stages' own code, without a store."""
