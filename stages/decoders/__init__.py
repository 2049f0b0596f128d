"""Decoder-only transformers: families, shapes, weights, checkpoints, and what is recorded beside them."""
