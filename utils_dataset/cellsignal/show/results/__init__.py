"""Accuracies as figures and tables: of a run, of several, of a sweep."""
