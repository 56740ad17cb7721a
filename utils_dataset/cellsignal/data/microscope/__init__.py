"""The virtual microscope that draws plates."""
