"""The report of a recovery: numbers with intervals, as JSON, Markdown and one HTML file."""
