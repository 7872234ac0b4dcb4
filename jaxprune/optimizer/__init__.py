"""Masks into optax: the wrappers of an optimizer, and the moments in its state."""
