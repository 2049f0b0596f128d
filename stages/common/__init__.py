"""Helpers that every stage may use and that know no stage: files, names, checks, this machine, progress."""
