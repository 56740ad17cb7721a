"""Phases of training: losses, optimizers, epochs, checkpoints, several processes."""
