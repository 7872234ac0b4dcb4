"""The one exception a recipe raises on purpose."""


class RecipeError(ValueError):
    """Something the user can put right; the message is one line that says how."""
