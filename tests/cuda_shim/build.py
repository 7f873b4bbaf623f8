# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/cuda with a C++ compiler, over the stand-in for CUDA in this folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("g++")
# Objects are found again by what they are made of.
OBJECTS = ROOT / "build" / "cuda_shim"
COMMON = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
CHECKED = ["-fsanitize=thread,bounds", "-ffp-contract=off", "-DSNIPER_WITH_CUDA"]
INCLUDE = re.compile(r'#include "(\w+\.cuh)"')
# The most thread blocks of a layer's grid: four, so that threads go round again in few values.
GRID = ("/ kThreads, 1, 1024)", "/ kThreads, 1, 4)")
LAUNCH = re.compile(r"(\w+(?:<\w+>)?)<<<(.*?)>>>\(", re.DOTALL)


def translate(source: Path) -> str:
    """CUDA as C++: `kernel<<<grid, block>>>(` becomes the call that the stand-in has for it."""
    text = INCLUDE.sub(lambda found: (source.parent / found[1]).read_text(), source.read_text())
    return LAUNCH.sub(r"shim::Launch(\2)(\1, ", text.replace(*GRID))


def build(csrc: Path = CSRC, objects: Path = OBJECTS) -> Path:
    """Compiles what has changed; returns the module `_cuda_shim`.

    Args:
        csrc: the sources, possibly a copy with something changed.
        objects: where what is new is kept.
    """
    objects.mkdir(parents=True, exist_ok=True)
    headers = [*csrc.rglob("*.h"), *HERE.rglob("*.h"), *HERE.rglob("*.cuh")]
    known = b"".join(path.read_bytes() for path in sorted(headers))
    includes = [f"-I{d}" for d in (HERE / "include", HERE, csrc, csrc / "cuda")]
    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    plain = [*csrc.glob("mask_*.cpp"), csrc / "cpu" / "parallel.cpp", *HERE.glob("*.cpp")]

    def compile_one(source: Path) -> Path:
        text, flags = source.read_text(), COMMON
        if source.suffix == ".cu":
            text, flags = translate(source), [*COMMON, *CHECKED]
        elif source.name == "module.cpp":
            # One source, since pybind11's headers take nearly all of its time.
            text += (csrc / "bind_masks.cpp").read_text()
            flags = [*COMMON, "-O0", "-DSNIPER_WITH_CUDA", *python]
        key = hashlib.sha256(known + text.encode() + " ".join(flags).encode()).hexdigest()[:16]
        name = f"{source.name}.{key}.o"
        target = objects / name
        if (OBJECTS / name).exists():
            return OBJECTS / name
        if not target.exists():
            copy = objects / f"{source.name}.{key}.cpp"
            copy.write_text(text)
            # Some headers lie beside their sources.
            beside = f"-I{source.parent}"
            partial = target.with_suffix(f".{os.getpid()}")
            _run([COMPILER, *flags, *includes, beside, "-c", str(copy), "-o", str(partial)])
            partial.replace(target)
        return target

    sources = [*plain, *(csrc / "cuda").glob("*.cu")]
    with ThreadPoolExecutor(2) as pool:
        made = [str(path) for path in pool.map(compile_one, sorted(sources))]
    key = hashlib.sha256(" ".join(made).encode()).hexdigest()[:16]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    module = objects / key / f"_cuda_shim{suffix}"
    if not module.exists():
        module.parent.mkdir(exist_ok=True)
        partial = module.with_suffix(f".{os.getpid()}")
        _run([COMPILER, "-shared", *made, "-o", str(partial), "-ldl", "-pthread"])
        partial.replace(module)
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
