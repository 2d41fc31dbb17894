"""Damaged files for every parser, and what must hold for each of them; see docs/how-to/fuzz-the-parsers.md."""
