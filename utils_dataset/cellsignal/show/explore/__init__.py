"""The page on which one explores the wells of a run."""
