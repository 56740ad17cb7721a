"""What a run says of itself: sessions, manifests, provenance, results."""
