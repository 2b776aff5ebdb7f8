"""Readers of foreign image files as streams of rows, in bounded memory. Nothing in a file is executed."""
