"""The Python of README and of the pages runs and prints what is stored; names and files exist."""

import importlib.util
import inspect
import pathlib
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from jaxprune import scores
from tests import test_score_contract, test_scores
from tests.public import PUBLIC, ROOMS
from tests.quick import quick

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ROOT / ".docs" / "pages"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
SAID = re.compile(r"^(.*?)# -> (about )?(.*)$")
NUMBER = re.compile(r"\d+(?:\.\d*)?(?:e[-+]?\d+)?")
REPOSITORY = "jaxprune/jaxprune"  # the badges' of colabs/ too


def programs():
    """Name -> a block of Python and the text below it; an equal block runs once.

    tests/recipes/test_gallery.py runs the blocks of methods.md.
    """
    pages = [path for path in sorted(PAGES.rglob("*.md")) if path.name != "methods.md"]
    found = {}
    for path in (ROOT / "README.md", *pages):
        for i, (block, text) in enumerate(BLOCK.findall(path.read_text())):
            if not found.get(block, ("", ""))[1]:
                found[block] = f"{path.stem}-{i}", text
    return {name: (block, text) for block, (name, text) in found.items()}


PROGRAMS = programs()


@pytest.mark.parametrize("name", quick(PROGRAMS, *(n for n in PROGRAMS if n.startswith("README"))))
def test_python_blocks_give_what_they_say(name):
    """`print(...)  # -> 0.9` prints 0.9, "about 0.9" allows 0.1; the text below has the rest."""
    for package in (
        "equinox",
        "keras",
        "qwix",
        "jax2onnx",
    ):  # extras; to import Keras sets its backend
        if f"import {package}" in PROGRAMS[name][0] and not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    if "import qwix" in PROGRAMS[name][0]:  # it reads a name that flax 0.12.8 warns of
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest restores the filters
    layers_promote_ranks = "import keras" in PROGRAMS[name][0]
    with jax.numpy_rank_promotion("allow" if layers_promote_ranks else "raise"):
        assert differences(*PROGRAMS[name], name) == []


def differences(block, text, name="page"):
    """(line, stored output, output) of every line whose output differs or is not stored."""
    printed = {}

    def log(*values):
        line = sys._getframe(1).f_lineno
        printed[line] = f"{printed.get(line, '')}{' '.join(map(str, values))}\n"

    exec(compile(block, name, "exec"), {"__name__": "page", "print": log})
    found, rest = [], ""
    for i, line in enumerate(block.splitlines(), 1):
        given = printed.get(i)
        if said := SAID.match(line):
            if given is None or not same(said[3], given, loose=bool(said[2])):
                found.append((line, said[3], given))
        else:
            rest += given or ""
    if not same(text, rest):
        found.append(("the text below", text, rest))
    return found


def same(said, given, loose=False):
    """Equal words, up to white space, and numbers to six digits; loose: to 1 in the last digit."""
    words = lambda text: re.sub(r" ?([][(){},]) ?", r"\1", " ".join(text.split()))
    said, given = words(said), words(given)
    if NUMBER.sub("#", said) != NUMBER.sub("#", given):
        return False
    pairs = zip(NUMBER.findall(said), NUMBER.findall(given), strict=True)
    unit = lambda number: 10.0 ** -len(number.partition(".")[2])
    return all(
        abs(float(a) - float(b)) <= max(1e-6 * float(a), loose * 1.001 * unit(a)) for a, b in pairs
    )


@pytest.mark.parametrize(
    "block",
    [
        "print(0.5)  # -> 0.9",
        "print(0.5)",  # nothing is said of it
        "x = 0.9  # -> 0.9",  # nothing is printed
        "# print(0.9)  # -> 0.9",
        "print(0.7)  # -> about 0.9",
        "print([0.9, 0.5])  # -> [0.9]",
        "print(0.9)  # -> -0.9",
        "for x in (0.9, 0.5):\n    print(x)  # -> 0.9",
    ],
)
def test_what_a_block_says_is_compared(block):
    assert len(differences(block, "")) == 1
    assert differences("print(0.90000004)  # -> 0.9\nprint(0.85)  # -> about 0.9", "") == []
    assert differences("print([1,\n 2])", "[1, 2]") == [] != differences("print(1)", "2")


@pytest.mark.full
def test_the_worked_example_of_contributing_keeps_the_laws(monkeypatch):
    """Its lines enter where they say: in scores.py, in the contract of scores, in a test."""
    file, contract, numbers = (
        block for block, _ in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    )
    inside = dict(vars(scores))
    exec(file, inside)
    monkeypatch.setattr(jp, "movement", inside["movement"], raising=False)
    ((name, score),) = eval("{" + contract + "}", dict(vars(test_score_contract))).items()
    monkeypatch.setitem(test_score_contract.SCORES, name, score)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        test_score_contract.test_scores_are_finite_floats_like_the_params_and_none_where_never_pruned(
            name, dtype
        )
    test_score_contract.test_under_vmap_they_are_those_of_a_loop(name)
    test_score_contract.test_half_precision_ranks_as_float32_does(name)
    inside = dict(vars(test_scores))
    exec(numbers, inside)
    inside["test_movement_of_three_weights"]()


def test_nothing_is_said_where_nobody_reads_it():
    """No test compares the output of methods.md, so it stores none."""
    assert "# ->" not in (PAGES / "methods.md").read_text()


def test_the_words_are_the_public_names():
    table = (PAGES / "words.md").read_text().split("| word | functions |")[1].split("\n\n")[0]
    names = set(re.findall(r"`([\w.]+)", table))
    functions = {name for name, value in PUBLIC.items() if not inspect.isclass(value)}
    assert functions - set(re.findall(r"([a-z]\w*(?:\.\w+)?)", table)) == set()
    assert names <= set(PUBLIC)


def test_names_of_rooms_are_public():
    """`gates.logits` in code font, in README, CONTRIBUTING, the pages and the notebooks."""
    files = [*ROOT.glob("*.md"), *PAGES.rglob("*.md"), *(ROOT / "colabs").glob("*.ipynb")]
    of_room = re.compile(rf"`(?:jp\.)?((?:{'|'.join(ROOMS)})\.(?!py|md)\w+)")
    named = {(file.name, name) for file in files for name in of_room.findall(file.read_text())}
    assert len(named) > 100
    assert {each for each in named if each[1] not in PUBLIC and each[0] != "CHANGELOG.md"} == set()


def test_every_file_of_the_map_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    files = re.findall(r"^  (\w+\.py|\w+/)", tree, re.MULTILINE)
    assert files and all((ROOT / "jaxprune" / file).exists() for file in files)


def test_the_first_two_shell_blocks_are_one_line_each():
    first, second = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2]
    assert "recipes.gmp" in first and "pytest" in second
    assert first.count("\n") == second.count("\n") == 1


def test_the_address_is_one():
    text = README + "".join(path.read_text() for path in PAGES.rglob("*.md"))
    named = set(re.findall(r"github(?:\.com)?/(jaxprune/[\w-]+)", text))
    assert named == {REPOSITORY} and f"pip install git+https://github.com/{REPOSITORY}" in README


def test_what_others_call_is_called_by_public_names_here():
    """Functions in the second column of the tables of coming-from.md."""
    called = set()
    text = (PAGES / "coming-from.md").read_text()
    for row in re.findall(r"^\|.*\| (.*) \|$", text, re.MULTILINE):
        for code in re.findall(r"`([^`]+)`", row):
            called |= set(re.findall(r"(?<![\w.])([\w.]+)\(", code))
    assert len(called) > 20
    assert called - {"print", "optax.polynomial_schedule"} - set(PUBLIC) == set()


@pytest.mark.parametrize("page", ["README.md", ".docs/pages"])
def test_pictures_and_links_lead_somewhere(page):
    """In the repository; `mkdocs build --strict` checks the links of the site."""
    path, dead = ROOT / page, []
    for file in [path] if path.is_file() else path.rglob("*.md"):
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if ":" not in target and not (file.parent / target).exists():
                dead.append((file.name, target))
    assert dead == []


def test_what_docstrings_say_of_arguments_is_of_theirs():
    """`a, b: ...` documents two arguments; each is an argument of the function."""
    wrong = []
    for name, function in PUBLIC.items():
        if not inspect.isfunction(function):
            continue
        own = set(inspect.signature(function).parameters)
        arguments = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
        told = re.findall(r"^  (\w[\w, ]*):", arguments, re.MULTILINE)
        wrong += [(name, a) for names in told for a in names.split(", ") if a not in own]
    assert wrong == []
