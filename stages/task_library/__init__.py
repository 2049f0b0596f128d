"""What a model is judged on: tasks by name, their definitions, and where their rows come from."""
