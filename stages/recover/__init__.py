"""Recovery: an adapter trained on a pruned model, and merged into it."""
