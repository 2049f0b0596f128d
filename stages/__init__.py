"""The work of the pipeline: each stage is a function from directories to a directory.

Nothing here imports `pipeline`, Hydra, OmegaConf or W&B, and no stage imports another; what two stages need
stands beside them (`anatomy`, `checkpoint`, `shapes`, `data`).
"""
