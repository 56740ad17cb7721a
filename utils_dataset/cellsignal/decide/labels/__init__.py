"""Several labels per site: thresholds, macro F1 and their ladder."""
