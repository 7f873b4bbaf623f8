# SPDX-License-Identifier: Apache-2.0
"""The house: imports point down, `import sniper` is light, files are signed and short."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sniper"
# Floors from the ground up; a module may import its own floor and those below it.
LIBRARY = {
    "_C": 0,
    "kernels": 0,
    "ops": 1,
    "layers": 2,
    "sparsity": 3,
    "tts": 3,
    "integrations": 4,
}
COMMANDS = ("train", "synthesize", "prepare", "compare", "export")
SOURCES = [
    path
    for folder in ("sniper", "kernels", "csrc", "bench", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".inc")
] + [ROOT / "setup.py", ROOT / "CMakeLists.txt"]
LONGEST = {"tests": 550}  # a test file mirrors its module, however much there is to say
LONGEST_CODE = 360  # about 300


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name."""
    found = {}
    for root, prefix in ((PACKAGE, "sniper"), (ROOT / "kernels", "sniper.kernels")):
        for path in root.rglob("*.py"):
            parts = [p for p in path.relative_to(root).with_suffix("").parts if p != "__init__"]
            found[".".join([prefix, *parts])] = path
    return found


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


def imports(name: str, path: Path) -> set[str]:
    """What a module imports from the package, as far as the names of its modules reach."""
    known, result = modules(), set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if path.name != "__init__.py" else []
            base = ".".join([*(package if node.level else []), *filter(None, [node.module])])
            assert base, f"{name}: a relative import that is not understood here"
            wanted = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in wanted:
            if dotted.split(".")[0] != "sniper":
                continue
            if dotted not in known and dotted not in ("sniper._C", "sniper"):
                dotted = dotted.rpartition(".")[0]
            result.add(dotted)
    return result


def floor(name: str) -> str:
    """The floor of a module: a folder of the library, or its own name among the top modules."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("name", sorted(n for n in modules() if floor(n) in LIBRARY))
def test_the_library_imports_downwards(name):
    here = floor(name)
    for other in imports(name, modules()[name]):
        there = floor(other)
        assert there in LIBRARY, f"{name} imports {other}, which is above the library"
        assert there == here or LIBRARY[there] < LIBRARY[here], f"{name} imports {other}"


def test_speech_and_sparsity_do_not_know_each_other():
    for name, path in modules().items():
        others = {floor(other) for other in imports(name, path)}
        assert not (floor(name) == "sparsity" and "tts" in others)
        assert not (floor(name) == "tts" and "sparsity" in others)


def test_integrations_know_no_speech_and_nobody_below_knows_them():
    for name, path in modules().items():
        others = {floor(other) for other in imports(name, path)}
        assert not (floor(name) == "integrations" and "tts" in others)
        assert floor(name) == "integrations" or "integrations" not in others


def test_only_commands_import_commands():
    for name, path in modules().items():
        wanted = {other for other in imports(name, path) if floor(other) in COMMANDS}
        assert not wanted or floor(name) in COMMANDS, f"{name} imports {wanted}"


def test_no_circles_among_the_top_modules():
    graph = {
        name: {o for o in imports(name, path) if floor(o) not in LIBRARY and o != "sniper"}
        for name, path in modules().items()
        if floor(name) not in LIBRARY and name != "sniper"
    }
    order: list[str] = []
    while len(order) < len(graph):
        free = [n for n, needs in graph.items() if n not in order and needs <= {*order, n}]
        assert free, f"a circle among {sorted(set(graph) - set(order))}"
        order += free


def test_import_sniper_is_light():
    """Nothing beyond what torch and numpy bring themselves."""
    program = (
        "import json, sys, torch, numpy, {}\n"
        "print(json.dumps([m for m in sys.modules if '.' not in m]))"
    )

    def loaded(extra: str) -> set[str]:
        command = [sys.executable, "-c", program.format(extra)]
        return set(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    more = loaded("sniper") - loaded("sys") - set(sys.stdlib_module_names)
    assert {name for name in more if not name.startswith("__editable__")} == {"sniper"}


def test_import_sniper_loads_neither_speech_nor_integrations():
    program = (
        "import sys, sniper\n"
        "print([m for m in sys.modules if m.startswith(('sniper.tts', 'sniper.integrations'))])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_licence_line_and_length(path):
    lines = path.read_text().splitlines()
    assert any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:2])
    assert len(lines) <= LONGEST.get(path.relative_to(ROOT).parts[0], LONGEST_CODE)
