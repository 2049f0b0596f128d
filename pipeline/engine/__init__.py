"""Running a plan over a store of artifacts."""
