"""Labelled sets, the pool format, augmentation and batch mixing."""
