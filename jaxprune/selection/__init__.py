"""The k largest entries of a tree, exactly and without sorting, and what uses them."""
