"""Bytes -> facts and findings. One bounded parser per format; nothing is ever executed or imported from a file."""
