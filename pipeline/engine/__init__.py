"""A plan run over a store of artifacts: the engine, the store, and where results came from."""
