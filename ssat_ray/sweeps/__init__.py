"""Sweeps: the pipeline over many settings, in one Ray session (docs/sweeps.md)."""
