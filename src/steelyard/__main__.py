"""`python -m steelyard`."""

from steelyard.cli.main import run

run()
