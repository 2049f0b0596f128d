"""Rows of text on their way into a model: streamed, tokenised and packed."""
