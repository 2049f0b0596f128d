"""Text for a terminal, and the options of the commands that only read a store."""
