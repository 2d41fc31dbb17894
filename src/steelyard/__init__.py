"""Steelyard: replace a closed AI service with open weights you run yourself, and prove the replacement."""

__version__ = "0.1.0"
