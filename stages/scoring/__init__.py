"""Asking a model: log-likelihoods of continuations and greedy continuations, fast. Shared by evaluation and recovery."""
