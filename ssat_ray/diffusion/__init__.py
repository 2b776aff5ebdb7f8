"""Diffusion: training targets and samplers."""
