"""What `recipes.bench` measures, a file each; `section` is what they hand back."""
