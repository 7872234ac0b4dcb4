"""The site: its check passes, can fail, and gives every public name its entry."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.public import PUBLIC

pytest.importorskip("mkdocs")  # the extra `docs`

ROOT = pathlib.Path(__file__).parents[1]
AS_IN_CI = re.search(r"^.*/mkdocs\" build.*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[0]


def built(tree, made):
    """What `.ci/run` does to the site of a tree: the ended process."""
    env = os.environ | {"bin": str(pathlib.Path(sys.executable).parent), "made": str(made)}
    return subprocess.run(
        ["bash", "-c", AS_IN_CI], cwd=tree, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.full
def test_every_public_name_has_its_entry(tmp_path):
    done = built(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = (tmp_path / "site" / "reference").glob("*.html")
    text = "".join(page.read_text() for page in pages)
    entries = set(re.findall(r'"doc doc-object doc-(?:function|class)">\s*<h2 id="([\w.]+)"', text))
    made = [value for value in PUBLIC.values() if value.__module__.startswith("jaxprune")]
    assert entries >= {f"{value.__module__}.{value.__qualname__}" for value in made}
    assert 'id="jaxprune.calibration.Method"' in text  # the name of a type is made elsewhere
    assert "jaxprune.coupling.analyze.analyze" in entries  # a module of that name is beside it


@pytest.mark.full
@pytest.mark.parametrize(
    ("page", "wrong", "told"),
    [
        (".docs/pages/limits.md", "[gone](nowhere.md)", "'nowhere.md', which does not exist"),
        (".docs/pages/limits.md", "[gone](laws.md#nowhere)", "anchor '#nowhere'"),
        (".docs/pages/limits.md", "[`test_gone`](../../tests/test_masks.py)", "names test_gone"),
    ],
)
def test_the_check_fails(tmp_path, page, wrong, told):
    tree = tmp_path / "tree"
    for part in (".docs", "jaxprune", "tests", "colabs", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__", "site")
        shutil.copytree(ROOT / part, tree / part, ignore=ignored)
    for part in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        shutil.copy(ROOT / part, tree / part)
    file = tree / page
    file.write_text(f"{file.read_text()}\n{wrong}\n")
    done = built(tree, tmp_path / "made")
    assert done.returncode != 0 and told in done.stderr
