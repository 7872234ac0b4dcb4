"""The one exception a recipe raises on purpose."""

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class RecipeError(ValueError):
    """Something the user can put right; the message is one line that says how."""


def reason(error: Exception) -> str:
    """What went wrong, on one line that is not too long."""
    said = " ".join((getattr(error, "strerror", None) or str(error) or repr(error)).split())
    for disk in map(os.strerror, FULL):  # deep in what tensorstore says
        if disk in said:
            return disk
    return said if len(said) <= 120 else f"{said[:120]} ..."
