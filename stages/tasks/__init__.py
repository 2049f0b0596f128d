"""The `tasks` stage: tasks, rows and texts to judge models on, as an artifact of its own."""
