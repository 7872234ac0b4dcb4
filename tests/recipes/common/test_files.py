"""Windows of files by hand, and as Magika makes them; which files are read."""

import os

import numpy as np
import pytest

from recipes.common import files
from recipes.common.files import Window
from recipes.common.folder import RecipeError

SMALL = Window(first=4, last=3, block=8, padding=256, least=2)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b" ab ", [*b"ab ", 256, *b" ab"]),  # white space goes at one end of each part
        (b"abcdefghij", [*b"abcd", *b"hij"]),
        (b"abcdefg   ", [*b"abcd", *b"efg"]),  # the last block is "cdefg   "
        (b"ab", [*b"ab", 256, 256, 256, *b"ab"]),
        (b"  a", None),  # one byte is left
        (b"        abc", None),  # none in the first block
    ],
)
def test_windows_by_hand(content, wanted):
    found = files.window_of(content, len(content), SMALL)
    assert (found if wanted is None else found.tolist()) == wanted


def test_files_of_a_folder(tmp_path):
    """No links, no second copy, no short file, at most so many of an extension."""
    (tmp_path / "deep").mkdir()
    for name, content in {
        "a.txt": "first", "b.TXT": "second", "deep/c.txt": "third", "copy.py": "first",
        "d.py": "fourth", "short.md": "x", "none": "fifth",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content)
    os.symlink(tmp_path / "a.txt", tmp_path / "link.c")
    found = files.read([tmp_path, tmp_path / "deep"], SMALL, 0, per_extension=2)
    assert sorted(found.extensions) in (
        ["", ".py", ".py", ".txt", ".txt"],
        ["", ".py", ".txt", ".txt"],  # the copy was met after a.txt
    )
    assert found.windows.shape == (len(found.paths), 7) and found.windows.dtype == np.int32
    assert len(np.unique(found.windows, axis=0)) == len(found.paths)
    again = files.read([tmp_path], SMALL, 0, per_extension=2)
    assert again.paths == found.paths
    for path, row in zip(found.paths, found.windows, strict=True):
        content = path.read_bytes()
        np.testing.assert_array_equal(row, files.window_of(content, len(content), SMALL))
    assert found.part(1, 3).paths == found.paths[1:3]
    two = files.read([tmp_path], SMALL, 0, most=2)
    rest = files.read([tmp_path], SMALL, 1, without=two)
    assert (len(two.paths), len(rest.paths)) == (2, 3)  # of five windows
    assert len(np.unique(np.concatenate([two.windows, rest.windows]), axis=0)) == 5


def test_windows_are_those_of_magika(tmp_path):
    magika = pytest.importorskip("magika")
    own = magika.Magika._extract_features_from_seekable
    window = Window(1024, 1024, 4096, 256, 8)
    generator = np.random.default_rng(0)
    for size in (8, 500, 1500, 4096, 5000, 9000):
        content = b"\n\t " + generator.bytes(size) + b"  \n"
        path = tmp_path / str(size)
        path.write_bytes(content)
        with path.open("rb") as stream:
            features = own(magika.types.Seekable(stream), 1024, 0, 1024, 256, 4096, False)
        (row,) = files.read([tmp_path], window, 0).windows
        assert row.tolist() == [*features.beg, *features.end]
        path.unlink()


def test_mistakes(tmp_path):
    with pytest.raises(RecipeError, match="nowhere' is no folder"):
        files.read([tmp_path / "nowhere"], SMALL, 0)
    with pytest.raises(RecipeError, match="has no file of 2 bytes or more"):
        files.read([tmp_path], SMALL, 0)
