"""The stages, which do the pipeline's work: each is a function from directories to a directory.

Nothing here imports `pipeline`, Hydra, OmegaConf or W&B, and no stage imports another. Code that stages share lies on
the shelves beside them: `common`, `fetch`, `rows`, `decoders`, `task_library`, `inference`, `adapters`. A shelf uses
only the shelves before it in this list. `registry` names every stage.
"""

__all__: list[str] = []
