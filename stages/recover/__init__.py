"""Recovery fine-tuning: adapters, packed batches, the loop and its checkpoints."""
