"""Recipes, places and the chain of kernels."""
