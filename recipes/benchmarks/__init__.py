"""The benchmarks of `recipes.bench`, a file each; each returns a `section.Section`."""
