"""A finished run as the archive that Kaggle asks of winners."""
