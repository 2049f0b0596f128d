"""What came back: numbers with intervals, as JSON, Markdown and one HTML file."""
