"""Pruning at initialisation: one paper, one file."""
