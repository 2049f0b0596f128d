"""Tasks that models are judged on: by name, with their definitions and the sources of their rows."""
