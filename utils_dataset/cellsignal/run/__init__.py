"""Runs: recipes, the folders and inputs of a run, the chain of notebooks, sweeps, clusters and archives."""
