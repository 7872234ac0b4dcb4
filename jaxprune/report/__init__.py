"""The table of a pruned network, layer by layer."""
