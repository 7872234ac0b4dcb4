"""Mask transforms: one paper, one file. `combine` holds what joins them."""
