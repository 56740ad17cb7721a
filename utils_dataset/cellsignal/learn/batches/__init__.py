"""Which sites share a batch, and what happens to their images."""
