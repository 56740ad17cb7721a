"""Plots of plates, wells and the batch effect."""
