"""Asking a model: log-likelihoods and continuations, fast. Shared by evaluation and recovery."""
