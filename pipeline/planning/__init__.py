"""What a configuration means before anything runs: the graph of stages, with every key. No torch here."""
