"""Compute the tables, tests and answers of a study from its file and its store; docs/studies.md has the definitions."""
