"""Masks: single weights are set to zero and every shape stays (`prune=sparseml`).

    registry    every way of masking by name
    config      the options
    recipe      options or an llm-compressor recipe become a list of `Masking`: what is masked, how, how far
    mask        masks a live model in place, checks what was done and says it
    magnitude   smallest weights first: ours
    compressor  SparseGPT and Wanda, by llm-compressor
    stage       load, mask, save

SparseML, which gave the method its name, reached its end of life (sparseml 1.9.0 on PyPI is a tombstone whose install
fails on purpose); its maintainers name llm-compressor as the successor, and that is what does the work here.
"""
