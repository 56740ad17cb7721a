"""The images of a site, from PNGs or from a packed store."""
