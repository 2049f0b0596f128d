"""Masks: single weights are set to zero and every shape stays (`prune=sparseml`).

    registry    every method of masking by name
    config      the options
    recipe      options or an llm-compressor recipe become a list of `Masking`: layers, algorithm and share
    mask        masks a live model in place, checks the outcome and records it
    magnitude   smallest weights first: ours
    compressor  SparseGPT and Wanda, by llm-compressor
    stage       load, mask, save

SparseML, which gave the method its name, reached its end of life (sparseml 1.9.0 on PyPI is a tombstone whose install
fails on purpose). Its maintainers name llm-compressor as the successor, so llm-compressor does the work here.
"""
