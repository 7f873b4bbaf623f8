# SPDX-License-Identifier: Apache-2.0
"""The house: imports point down, no circle, `import sniper` is light, files are signed, and the
ways through it are as short as `docs/how-it-works.md` says.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sniper"
# Floors from the ground up. A room may import its own floor's rooms only where that is the same
# room; the longest name that fits a module is its room.
FLOORS = (
    ("sniper", "sniper._C", "sniper.kernels"),
    (
        "sniper.ops.aside",
        "sniper.ops.cache_files",
        "sniper.ops.geometry",
        "sniper.ops.layout",
        "sniper.ops.extension",
        "sniper.ops.memory",
        "sniper.ops.once",
        "sniper.ops.transforms",
    ),
    (
        "sniper.ops.backend",
        "sniper.ops.bits",
        "sniper.ops.gradients",
        "sniper.ops.pruned",
        "sniper.ops.rebuild",
        "sniper.ops.rounding",
        "sniper.ops.timings",
    ),
    ("sniper.ops.selfcheck",),
    ("sniper.ops.backends", "sniper.ops.sdpa"),
    ("sniper.ops.dispatch", "sniper.ops.selfcheck_cases", "sniper.ops.selfcheck_child"),
    ("sniper.ops",),
    ("sniper.layers",),
    ("sniper.optim",),
    (
        "sniper.sparsity",
        "sniper.tts.errors",
        "sniper.tts.files",
        "sniper.tts.locks",
        "sniper.tts.processes",
    ),
    ("sniper.tts.text", "sniper.tts.audio"),
    ("sniper.tts.corpus",),
    ("sniper.tts.aligners", "sniper.tts.model"),
    ("sniper.tts",),
    ("sniper.training", "sniper.integrations", "sniper.distributed"),
    (
        "sniper.cli",
        "sniper.__main__",
        "sniper.command",
        "sniper.train",
        "sniper.align",
        "sniper.prepare",
        "sniper.synthesize",
        "sniper.export",
        "sniper.doctor",
    ),
    ("sniper.compare",),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# Commands take their exit status from `command`, `python -m sniper` is the console command, and all
# of speech has one family of errors; nobody else of a floor knows its neighbours.
NEIGHBOURS = {"sniper.command", "sniper.cli", "sniper.tts.errors"}
SOURCES = [
    path
    for folder in ("sniper", "kernels", "csrc", "bench", "tests", "examples")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".inc")
] + [ROOT / "setup.py", ROOT / "CMakeLists.txt"]


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name."""
    found = {}
    for root, prefix in ((PACKAGE, "sniper"), (ROOT / "kernels", "sniper.kernels")):
        for path in root.rglob("*.py"):
            parts = [p for p in path.relative_to(root).with_suffix("").parts if p != "__init__"]
            found[".".join([prefix, *parts])] = path
    return found


MODULES = modules()


@functools.cache
def imports(name: str, everywhere: bool = True) -> frozenset[str]:
    """The package's modules that a module names in an import, also for type checkers alone.

    Args:
        everywhere: also what functions import when they run.
    """
    found = set()
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree) if everywhere else at_import(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            wanted = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in wanted:
            if dotted.split(".")[0] == "sniper":
                known = dotted in MODULES or dotted == "sniper._C"
                found.add(dotted if known else dotted.rpartition(".")[0])
    return frozenset(found - {name})


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from at_import(node)


def room(name: str) -> str:
    """The longest name in `FLOORS` that a module's name begins with."""
    parts = name.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(n for n in names if n in HEIGHT)


def test_imports_point_down():
    upward = []
    # The package loads its rooms when they are asked for, and its command whatever was asked for.
    for name in sorted(MODULES.keys() - {"sniper", "sniper.cli"}):
        here = room(name)
        for other in imports(name):
            there = room(other)
            if HEIGHT[there] >= HEIGHT[here] and there != here and there not in NEIGHBOURS:
                upward.append(f"{name} imports {other}")
    assert not upward


def test_speech_and_sparsity_do_not_know_each_other():
    for name in MODULES:
        others = imports(name)
        assert not (name.startswith("sniper.sparsity") and any("sniper.tts" in o for o in others))
        assert not (name.startswith("sniper.tts") and any("sniper.sparsity" in o for o in others))
        if name.startswith("sniper.integrations"):
            assert not any("sniper.tts" in o or "sniper.training" in o for o in others)


def test_no_circles():
    graph = {n: imports(n, everywhere=False) & set(MODULES) for n in MODULES}
    # A package's own module stands for the names that it hands on, which its rooms may not use.
    order: set[str] = set()
    while len(order) < len(graph):
        free = {n for n, needs in graph.items() if n not in order and needs <= order}
        assert free, f"a circle among {sorted(set(graph) - order)}"
        order |= free


@functools.cache
def loaded(extra: str) -> frozenset[str]:
    """The modules of a process that has imported torch, NumPy and something else."""
    program = f"import json, sys, torch, numpy, {extra}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return frozenset(json.loads(done.stdout))


WITH_SNIPER = "sniper; sniper.Sniper, sniper.sparsify"


def test_import_sniper_is_light():
    """Nothing beyond what torch and numpy bring themselves, and no room that is not asked for."""
    more = {name for name in loaded(WITH_SNIPER) - loaded("sys") if "." not in name}
    more -= set(sys.stdlib_module_names)
    assert {name for name in more if not name.startswith("__editable__")} == {"sniper"}


def test_import_sniper_loads_neither_speech_nor_integrations():
    apart = ("sniper.tts", "sniper.integrations")
    assert not [name for name in loaded(WITH_SNIPER) if name.startswith(apart)]


def test_licence_line():
    licence, without = "SPDX-License-Identifier: Apache-2.0", []
    for path in SOURCES:
        if not any(licence in line for line in path.read_text().splitlines()[:2]):
            without.append(str(path.relative_to(ROOT)))
    assert not without


def ways() -> list[list[str]]:
    """The two lists of modules in `docs/how-it-works.md`."""
    text = (ROOT / "docs/how-it-works.md").read_text()
    text = text[text.index("## Two ways through the house") :]
    blocks = re.findall(r"```text\n(.*?)```", text, flags=re.S)[:2]
    return [block.split() for block in blocks]


def stack_of_package() -> list[str]:
    """The package's modules on the call stack, outermost first, each once."""
    found: list[str] = []
    for frame in traceback.extract_stack():
        path = Path(frame.filename)
        if PACKAGE in path.parents:
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            name = ".".join(p for p in parts if p != "__init__")
            # Stands in the place of torch's dispatcher, which is no file of ours either.
            if name not in found and name != "ops.operation":
                found.append(name)
    return found


def test_a_batch_goes_to_a_kernel_as_the_documentation_says(monkeypatch, demo_corpus, tmp_path):
    from speech import tiny

    from sniper import train
    from sniper.ops import use_backend
    from sniper.ops.backends.cpu.products import CpuBackend
    from sniper.training.config import dump

    stacks = []
    inner = CpuBackend.fwd

    def fwd(self, *args):
        stacks.append([*stack_of_package(), "ops.backends.cpu.products"])
        return inner(self, *args)

    monkeypatch.setattr(CpuBackend, "fwd", fwd)
    settings = tmp_path / "tiny.yaml"
    settings.write_text(dump(tiny(demo_corpus, tmp_path, train={"epochs": 1})))
    with use_backend("cpu"):
        assert train.main(["--config", str(settings)]) == 0
    way = ways()[0]
    assert len(way) <= 9 and way[0] == "train" and way[-1] == "_C"
    assert way[:-1] in stacks
    # Where a part of the model is in a file of its own, a layer lies one file deeper; scoring and
    # validation come from the same trainer.
    for stack in stacks:
        assert len(stack) <= len(way), stack


def test_a_change_of_sparsity_reaches_the_extension_as_the_documentation_says(monkeypatch):
    from sniper import Sniper
    from sniper.ops import extension

    stacks = []
    inner = extension.call

    def call(name, *args):
        if name == "update_layers":
            stacks.append([*stack_of_package(), "ops.extension"])
        return inner(name, *args)

    monkeypatch.setattr(extension, "call", call)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    sniper = Sniper(model, {0: 0.5, 1: 0.0}, block_size=16, lr_scale=None)
    sniper.score([torch.randn(4, 32)], lambda m, x: m(x).square().sum())
    sniper.step(0)
    way = ways()[1]
    assert len(way) <= 5 and way[-1] == "_C"
    assert stacks == [way[:-1]]
