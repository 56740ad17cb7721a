"""Packed stores and OME-Zarr, written and verified."""
