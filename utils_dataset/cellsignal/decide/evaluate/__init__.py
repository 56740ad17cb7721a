"""Ladders, accuracies and comparisons."""
