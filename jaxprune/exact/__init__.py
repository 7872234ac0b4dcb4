"""Exact numbers without float64 or int64: integers, counts and sums as several words."""
