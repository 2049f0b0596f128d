"""The sections of a report's page, each from `report.json` to blocks."""
