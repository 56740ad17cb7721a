"""The chain of notebooks: its steps, how they run, and how a run is made again."""
