"""What may be pruned, what one layer is, and which of its axes are inputs and outputs."""
