"""The command `cellsignal`: one file for each family of commands."""
