"""What holds for all tests: no property has a deadline of its own, since a busy machine would break it."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
