"""CellSignal: plates go in, a submission and a report come out."""

__version__ = "0.1.0"
