"""What a run records: the sessions of its notebooks, their receipts, provenance, results."""
