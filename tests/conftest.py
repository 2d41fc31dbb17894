"""Settings for every test: Hypothesis has no deadline, since two busy cores are not a defect."""

from hypothesis import settings

settings.register_profile("steelyard", deadline=None)
settings.load_profile("steelyard")
