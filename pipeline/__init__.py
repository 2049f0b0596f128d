"""The composition root: configuration, plan, keys, store, engine, tracking and inspection of the stages' artifacts."""
