"""The sections of a report's page. Each turns `report.json` into blocks."""
