"""The k largest entries of a tree, exactly and without sorting; counts, drop and grow."""
