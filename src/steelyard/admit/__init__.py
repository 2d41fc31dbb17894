"""Weigh a model: scan, licence, openness, conversion. Nothing in a model is ever executed."""
