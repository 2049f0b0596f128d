"""Pruning, recovering and judging a model that is in memory: the stages' own code, without a store.

`pipeline` has its functions as `prune_model`, `recover_model`, `evaluate_model` and `load_rows`.
"""
