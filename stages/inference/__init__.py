"""Log-likelihoods and continuations of a live model, computed fast. Evaluation and recovery share them."""
