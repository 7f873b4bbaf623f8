# SPDX-License-Identifier: Apache-2.0
"""MkDocs hook: what the pages link to outside `docs/` becomes part of the site.

On GitHub `../bench/results/x.png` is the file in the repository. MkDocs knows only what lies in its
folder; here each such file is added to it under `repository/`, and the links are written anew. A
folder becomes a link to nothing and stays text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# A link or picture to a path above the page: [text](../path#anchor).
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the files that links name."""
    for page in list(files.documentation_pages()):
        for _, _, target, _ in _LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8")):
            path = (ROOT / "docs" / target).resolve()
            name = _inside(path)
            if path.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points the links to where the files are in the site."""

    def rewrite(match: re.Match) -> str:
        picture, text, target, anchor = match.groups()
        path = (ROOT / "docs" / target).resolve()
        if not path.is_file():
            return text
        here = posixpath.dirname(page.file.src_uri)
        return f"{picture}[{text}]({posixpath.relpath(_inside(path), here)}{anchor or ''})"

    return _LINK.sub(rewrite, markdown)


def _inside(path: Path) -> str:
    """Name in the site; a Markdown file becomes a page, whose own links may lead nowhere here, so
    it goes as text.
    """
    name = f"repository/{path.relative_to(ROOT).as_posix()}"
    return f"{name}.txt" if path.suffix == ".md" else name
