"""Backbones, heads, the classifier, and whose statistics normalise."""
