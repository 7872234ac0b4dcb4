"""Makes the pages that nobody writes: the front page from README.md, the reference from the
docstrings in the order of `jaxprune/__init__.py`, and a page for every linked file.

The pages are plain Markdown, and their links also work in the repository. A public name in code
font becomes a link to the reference. A missing target is a warning, and an error with `--strict`.
With `-q` mkdocs counts no warnings.
"""

from __future__ import annotations

import inspect
import logging
import os
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tree whose pages these are

import jaxprune  # noqa: E402

PAGES = ROOT / ".docs" / "pages"
INDEX = "index.md"
CODE_BLOCK = re.compile(r"^( *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
CODE = re.compile(r"(?<![\[`])`((?:jp\.)?(\w+(?:\.\w+)?)(?:\([^`]*\))?)`(?![`\]])")
log = logging.getLogger("mkdocs.hooks")


def sections() -> dict[str, dict[str, str]]:
    """Heading -> {public name: the path of its definition}, in the order of `jaxprune/__init__.py`.

    The object knows its path; `jaxprune.coupling.analyze` alone could also be a module. A room is a
    section: `jp.gates` -> {`gates.logits`: ...}.
    """
    found: dict[str, dict[str, str]] = {}
    text = (ROOT / "jaxprune" / "__init__.py").read_text()
    for heading, name in re.findall(
        r"^# (.*)$|^from \S+ import \(?\s*\w+ as (\w+)", text, re.MULTILINE
    ):
        if heading:
            found[heading[0].upper() + heading[1:]] = {}
        else:
            value = getattr(jaxprune, name)
            if isinstance(value, ModuleType):
                found[f"jp.{name}"] = {
                    f"{name}.{each}": defined(item) or f"jaxprune.{name}.{each}"
                    for each, item in vars(value).items()
                    if not each.startswith("_") and not isinstance(item, ModuleType)
                }
            else:
                found[list(found)[-1]][name] = defined(value) or f"jaxprune.{name}"
    return {heading: names for heading, names in found.items() if names}


def defined(value: Any) -> str:
    """The path of a function or a class of ours; empty for a name of a type, which has none."""
    ours = value.__module__.startswith("jaxprune")
    return f"{value.__module__}.{value.__qualname__}" if ours else ""


SECTIONS = sections()
PUBLIC = {name: path for names in SECTIONS.values() for name, path in names.items()}


def reference(heading: str) -> str:
    """The page of a section of the reference."""
    return f"reference/{re.sub('[^a-z]+', '-', heading.lower()).strip('-')}.md"


def source(path: Path) -> str:
    """The page that shows a file of the repository."""
    return f"sources/{path.relative_to(ROOT).as_posix()}.md"


def on_config(config: MkDocsConfig) -> None:
    """Adds the reference at the end of the navigation."""
    pages = [{heading: reference(heading)} for heading in SECTIONS]
    config.nav.append({"Reference": pages})  # type: ignore[union-attr]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that nobody writes."""
    made = {INDEX: (ROOT / "README.md").read_text()}
    for heading, names in SECTIONS.items():
        shown = "\n\n".join(f"::: {path}" for path in names.values())
        if heading.startswith("jp."):
            shown = f"{inspect.getdoc(getattr(jaxprune, heading[3:]))}\n\n{shown}"
        made[reference(heading)] = f"# {heading}\n\n{shown}\n"
    written = {
        page.src_uri: (PAGES / page.src_uri).read_text() for page in files.documentation_pages()
    }
    for uri, text in {**made, **written}.items():
        for _, target, _ in LINK.findall(CODE_BLOCK.sub("", text)):
            path = place(uri, target)
            if path and path.is_file() and not is_page(path):
                lines = "~~~~~~ { .python linenums=1 }" if path.suffix == ".py" else "~~~~~~"
                name = path.relative_to(ROOT).as_posix()
                made[source(path)] = f"# {name}\n\n{lines}\n{path.read_text()}~~~~~~\n"
    for uri, text in made.items():
        file = File.generated(config, uri, content=text)
        if uri.startswith("sources/"):
            file.inclusion = file.inclusion.NOT_IN_NAV
        files.append(file)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Changes links to links of the site."""
    uri = page.file.src_uri
    if uri.startswith(("reference/", "sources/")):
        return markdown
    parts = CODE_BLOCK.split(markdown)  # text and code in turns
    parts[::2] = [names(LINK.sub(relinked(uri), text)) for text in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, **_: object) -> None:
    """Tells mkdocs the anchors of a source's lines: mkdocs does not read highlighted code."""
    if page.file.src_uri.startswith("sources/"):
        anchors = page.present_anchor_ids or set()
        page.present_anchor_ids = anchors | set(re.findall(r'id="(__line-[\d-]+)"', html))


def is_page(path: Path) -> bool:
    """Whether a file is a page: one of .docs/pages, or README.md."""
    return path == ROOT / "README.md" or path.is_relative_to(PAGES)


def place(uri: str, target: str) -> Path | None:
    """The file that a link of a page leads to; None for a link to elsewhere."""
    if not target or re.match(r"\w+:", target):
        return None
    home = ROOT if uri == INDEX else (PAGES / uri).parent
    return Path(os.path.normpath(home / target))


def relinked(uri: str) -> Callable[[re.Match[str]], str]:
    """A link of the repository -> the same link in the site."""

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = place(uri, target)
        if path is None:
            return match[0]
        if path.is_dir():
            return text
        if not path.exists():
            log.warning("%s links to '%s', which does not exist", uri, target)
            return text
        if not is_page(path) and (name := re.fullmatch(r"`(test_\w+)`", text)):
            lines = path.read_text().splitlines()
            found = [i for i, line in enumerate(lines, 1) if line.startswith(f"def {name[1]}(")]
            if not found:
                log.warning("%s names %s, which is not in %s", uri, name[1], target)
                return text
            anchor = f"#__line-0-{found[0]}"
        if path == ROOT / "README.md":
            wanted = INDEX
        else:
            wanted = path.relative_to(PAGES).as_posix() if is_page(path) else source(path)
        return f"[{text}]({posixpath.relpath(wanted, posixpath.dirname(uri) or '.')}{anchor})"

    return link


def names(text: str) -> str:
    """Makes links to the reference of public names in code font, except in headings."""

    def link(match: re.Match[str]) -> str:
        return f"[`{match[1]}`][{PUBLIC[match[2]]}]" if match[2] in PUBLIC else match[0]

    lines = text.split("\n")
    return "\n".join(line if line.startswith("#") else CODE.sub(link, line) for line in lines)
