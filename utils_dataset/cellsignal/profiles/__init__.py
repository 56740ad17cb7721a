"""Profiles: one vector per well, corrected, and what image-based profiling measures on it."""
