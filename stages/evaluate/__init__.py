"""The evaluation of a model: multiple-choice log-likelihoods, perplexity of held-out text, and its running cost."""
