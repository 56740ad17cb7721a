"""Wells and sites as tables, the design of plates, and how they are split."""
