"""Sweeps: many runs on the same plates, compared in one table."""
