"""How good a model is: multiple-choice log-likelihoods, perplexity of held-out text, and what it costs to run."""
