"""Scores of wells on disk."""
