"""The `tasks` stage: what is judged, with its rows and texts, becomes an artifact of its own."""
