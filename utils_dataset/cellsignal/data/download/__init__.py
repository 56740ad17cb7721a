"""The public release and the competition's files, byte by byte and resumable."""
