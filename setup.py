# SPDX-License-Identifier: Apache-2.0
"""Builds `sniper._C` with CMake and Ninja; everything else about the package is in pyproject.toml.

SNIPER_CUDA=auto|on|off decides whether the CUDA sources are built. `auto`: when nvcc is found and
compiles them, else a CPU build with one line that says why; `on`: anything in the way is an error.
SNIPER_CUDA_ARCHS lists architectures as CMake takes them, in place of those found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# Machine code of one architecture also runs on later ones of the same major version, so that these
# cover everything from Turing on. The newest goes in as PTX too, which drivers compile for GPUs
# that are newer than the toolkit.
ARCHS = (75, 80, 90, 100, 120)


class CudaUnusable(Exception):
    """nvcc, or the host compiler under it, refuses; the message is theirs."""


def find_nvcc() -> str | None:
    """Where nvcc is: CUDACXX, CUDA_HOME, PATH, then the usual place."""
    if given := os.environ.get("CUDACXX"):
        return given
    if (home := os.environ.get("CUDA_HOME")) and (Path(home) / "bin/nvcc").exists():
        return str(Path(home) / "bin/nvcc")
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def cuda_choice() -> str:
    """What SNIPER_CUDA says: auto, on or off."""
    choice = os.environ.get("SNIPER_CUDA", "auto")
    if choice not in ("auto", "on", "off"):
        sys.exit(f"SNIPER_CUDA: expected auto, on or off, got {choice!r}")
    return choice


def cuda_compiler() -> str | None:
    """The nvcc to build with, or None for a CPU-only build, as SNIPER_CUDA says."""
    choice = cuda_choice()
    nvcc = None if choice == "off" else find_nvcc()
    if choice == "on" and nvcc is None:
        sys.exit(
            "SNIPER_CUDA=on, but no nvcc in CUDACXX, CUDA_HOME or PATH: install the CUDA toolkit"
        )
    return nvcc


def cuda_architectures(nvcc: str) -> str:
    """What to compile for, as CMAKE_CUDA_ARCHITECTURES: those of ARCHS that this nvcc knows, and
    PTX of the newest of them.

    Raises:
        CudaUnusable: nvcc does not run, or knows none.
    """
    if given := os.environ.get("SNIPER_CUDA_ARCHS"):
        return given
    listed = output_of([nvcc, "--list-gpu-arch"])
    known = sorted(int(number) for number in re.findall(r"^compute_(\d+)$", listed, re.M))
    if not known:
        raise CudaUnusable(f"{nvcc} --list-gpu-arch names no architecture: {listed.strip()}")
    # An nvcc older than all of ARCHS still serves the GPUs it was made for.
    archs = [arch for arch in ARCHS if arch in known] or known[-1:]
    return ";".join([*(f"{arch}-real" for arch in archs), f"{archs[-1]}-virtual"])


def try_compiler(nvcc: str) -> None:
    """Compiles three lines of CUDA: CMake's own check hides what the compiler says.

    Raises:
        CudaUnusable: nvcc or its host compiler refuses.
    """
    host = os.environ.get("CUDAHOSTCXX")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text("#include <cuda_runtime.h>\n__global__ void trial(int* x) { *x = 1; }\n")
        command = [nvcc, "-std=c++17", *(["-ccbin", host] if host else []), "-c", str(source)]
        output_of([*command, "-o", str(source.with_suffix(".o"))])


def output_of(command: list[str]) -> str:
    """Runs a command; its stdout and stderr together.

    Raises:
        CudaUnusable: it cannot be run, or fails.
    """
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise CudaUnusable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise CudaUnusable(done.stdout.strip() or f"{command[0]} exited with {done.returncode}")
    return done.stdout


def first_complaint(message: str) -> str:
    """The line of a compiler's message that says most, for a report of one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((x for x in lines if re.search(r"#error|error:|fatal", x, re.I)), lines[-1])


def build_tool(name: str) -> str:
    """cmake or ninja of the Python that builds, else of PATH: pip's build environment has both."""
    scripts = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(scripts) if scripts.exists() else None)
    if found is None:
        sys.exit(f"{name} is not installed: pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Configures and builds one CMake project into the place where setuptools wants the module."""

    def build_extension(self, ext: Extension) -> None:
        if nvcc := cuda_compiler():
            try:
                for command in self.commands(ext, nvcc):
                    print(output_of(command), end="", flush=True)
                return
            except CudaUnusable as error:
                if cuda_choice() == "on":
                    sys.exit(f"SNIPER_CUDA=on, but the CUDA sources cannot be built:\n{error}")
                why = first_complaint(str(error))
                print(
                    f"sniper: CUDA left out of the build, it goes on for the CPU alone: {why}",
                    flush=True,
                )
        for command in self.commands(ext, None):
            self.spawn([*command])

    def commands(self, ext: Extension, nvcc: str | None) -> list[list[str]]:
        """To configure and to build, with CUDA where there is an nvcc.

        Raises:
            CudaUnusable: nvcc compiles nothing, or knows no architecture.
        """
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ext.name / ("cuda" if nvcc else "cpu")
        args = [
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_MAKE_PROGRAM={build_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSNIPER_CUDA={'ON' if nvcc else 'OFF'}",
        ]
        if nvcc:
            try_compiler(nvcc)
            args.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            args.append(f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures(nvcc)}")
        args += os.environ.get("CMAKE_ARGS", "").split()
        cmake = build_tool("cmake")
        return [
            [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *args],
            [cmake, "--build", str(build), "--target", "_C"],
        ]


# Folders of files that are no modules.
DATA = {
    "sniper": ["py.typed"],
    "sniper.configs": ["*.yaml"],
    "sniper.compare.matrices": ["*.yaml"],
    "sniper.compare.assets": ["*"],
}

setup(
    # `kernels` is a name taken on PyPI, so the folder is installed inside the package.
    packages=[
        *find_packages(include=["sniper", "sniper.*"]),
        "sniper.kernels",
        *(name for name in DATA if name != "sniper"),
    ],
    package_dir={"sniper.kernels": "kernels"},
    package_data=DATA,
    ext_modules=[Extension("sniper._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
