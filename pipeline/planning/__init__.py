"""The graph of stages that a configuration means, with every key, before anything runs. No torch here."""
