"""Efficient semi-supervised adversarial training (arXiv 2501.10466) as a distributed system on Ray."""

__version__ = "0.1.0"
