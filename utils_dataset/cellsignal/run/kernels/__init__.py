"""What each notebook does between its cells: data, training, prediction, and embeddings of a finished run."""
