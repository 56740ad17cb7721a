"""What a run says of itself: sessions, receipts of steps, provenance, results."""
