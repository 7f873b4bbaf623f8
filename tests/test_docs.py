# SPDX-License-Identifier: Apache-2.0
"""The documents hold to the code: links, commands, the Python in them, the messages they quote."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING"))]
PAGES.append(ROOT / "CHANGELOG.md")
COMMANDS = {"train", "align", "prepare", "synthesize", "export", "compare", "doctor"}


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Names of a page's headings, as GitHub and MkDocs make them."""
    bare = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", bare, re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT) and path.exists(), f"{link}: no such file"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{link}: no such heading"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    words = re.compile(
        r"(?:python -m sniper\.|sniper-tts )([a-z_]+)(?: (demo|ljspeech|lexicon)\b)?"
    )
    for command, corpus in words.findall(text):
        known = command in COMMANDS or find_spec(f"sniper.{command}")
        assert known, f"{page.name}: no command {command}"
        assert importlib.util.find_spec(f"sniper.{command}") is not None
        assert not corpus or command == "prepare"
    for script in re.findall(r"python (?:-m pytest )?((?:bench|examples|tests)[\w/]*\.py)", text):
        assert (ROOT / script).is_file(), f"{page.name}: no {script}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#|\n)", text):
        assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: no make {target}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_and_presets_exist(page):
    """Every option of a `python -m sniper.X` line is one that X's --help has."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    presets = {p.stem for p in (ROOT / "sniper/configs").glob("*.yaml")}
    presets |= {p.stem for p in (ROOT / "sniper/compare/matrices").glob("*.yaml")}
    for line in re.findall(r"python -m sniper\.([^\n`#]+)", text):
        command, *rest = line.split()
        if command in COMMANDS:
            known = usage(
                command, rest[0] if rest and rest[0] in ("demo", "ljspeech", "lexicon") else ""
            )
            for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", " ".join(rest)):
                assert re.search(rf"{option}\b", known), f"{command} has no {option}"
    for name in re.findall(r"--config ([\w-]+)(?=[\s`])", text):
        assert name in presets, f"{page.name}: no preset {name}"


@cache
def usage(command: str, corpus: str = "") -> str:
    """What a command's --help prints."""
    words = [sys.executable, "-m", f"sniper.{command}", *filter(None, [corpus]), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_compiles(page):
    for block in fences(page.read_text(encoding="utf-8"), "python"):
        compile(block, page.name, "exec")


def test_python_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    """One block goes on where the block before ended."""
    pytest.importorskip("transformers")
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "guide"}
    blocks = fences((DOCS / "own-model.md").read_text(encoding="utf-8"), "python")
    for block in blocks:
        exec(compile(block, "own-model.md", "exec"), names)
    assert names["snip"].sparsity == 0.0
    assert names["report"].taken == ("0", "2")
    assert "2 modules with" in capsys.readouterr().out


@cache
def said_by_the_code() -> tuple[str, ...]:
    """Every piece of text in the sources, f-strings cut at their values."""
    pieces = []
    for path in [*(ROOT / "sniper").rglob("*.py"), ROOT / "setup.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    for path in (ROOT / "csrc").rglob("*.cpp"):
        pieces.append(path.read_text(encoding="utf-8"))
    return tuple(pieces)


def quoted() -> list[str]:
    """Messages of the troubleshooting page: blocks of text, and the first column of its table."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.M)
    inline = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    return [block.strip() for block in fences(text, "text")] + inline


@pytest.mark.parametrize("message", quoted())
def test_quoted_messages_are_in_the_code(message):
    for piece in message.split("…"):
        piece = piece.strip()
        if len(piece) > 1:  # not the full stop between two values
            assert any(piece in said for said in said_by_the_code()), piece


def test_mkdocs_builds_the_site(tmp_path):
    pytest.importorskip("mkdocs")
    # Not --quiet: warnings that are not shown do not count as errors.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    page = (tmp_path / "evidence/index.html").read_text(encoding="utf-8")
    (picture,) = re.findall(r'src="([^"]+loss\.png)"', page)
    assert (tmp_path / "evidence" / picture).resolve().is_file()


def test_the_torch_that_is_installed_first_is_one_that_is_taken():
    """Else the next line of the guide would put another in its place."""
    (asked,) = re.findall(r"with `'torch(<[\d.]+)'` in place", (DOCS / "index.md").read_text())
    (taken,) = re.findall(r'"torch>=[\d.]+,(<[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert asked == taken
