"""Classifiers, their registry and files, weight averaging, and the U-Net builder."""
