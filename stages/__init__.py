"""The work of the pipeline: each stage is a function from directories to a directory.

Nothing here imports `pipeline`, Hydra, OmegaConf or W&B, and no stage imports another. What stages share lies on the
shelves beside them; a shelf uses those before it: `common`, `fetch`, `rows`, `decoders`, `task_library`, `inference`,
`adapters`. `registry` names every stage.
"""

__all__: list[str] = []
