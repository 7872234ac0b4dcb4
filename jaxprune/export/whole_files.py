"""Files that are written together: all of them, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def written_together(contents: Mapping[Path, bytes]) -> None:
    """Replaces files, in their order; if one can't be replaced, all stay as they were.

    If the program is killed between two replacements, only the first is replaced: a reader needs a
    checksum. All files but the last are copied first, to put them back.

    Raises:
      OSError: if a file can't be written or replaced.
    """
    beside = lambda path, kind: path.with_name(f".{path.name}.{os.getpid()}.{kind}")
    drafts = {path: beside(path, "tmp") for path in contents}
    copies = {path: beside(path, "old") for path in list(contents)[:-1] if path.exists()}
    replaced: list[Path] = []
    try:
        for path, content in contents.items():
            drafts[path].write_bytes(content)
        for path, copy in copies.items():
            shutil.copy2(path, copy)
        try:
            for path, draft in drafts.items():
                os.replace(draft, path)
                replaced.append(path)
        except OSError:
            for path in replaced:
                if path in copies:
                    os.replace(copies[path], path)
                else:
                    path.unlink()
            raise
    finally:
        for left in (*drafts.values(), *copies.values()):
            left.unlink(missing_ok=True)
