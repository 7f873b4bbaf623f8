# SPDX-License-Identifier: Apache-2.0
"""Builds `sniper._C` with CMake and Ninja; everything else about the package is in pyproject.toml.

SNIPER_CUDA=auto|on|off decides whether the CUDA sources are built (auto: when nvcc is found).
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_nvcc() -> str | None:
    """Where nvcc is: CUDACXX, CUDA_HOME, PATH, then the usual place."""
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "bin/nvcc").exists():
            return str(Path(home) / "bin/nvcc")
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def cuda_compiler() -> str | None:
    """The nvcc to build with, or None for a CPU-only build, as SNIPER_CUDA says."""
    choice = os.environ.get("SNIPER_CUDA", "auto")
    if choice not in ("auto", "on", "off"):
        sys.exit(f"SNIPER_CUDA: expected auto, on or off, got {choice!r}")
    nvcc = None if choice == "off" else find_nvcc()
    if choice == "on" and nvcc is None:
        sys.exit(
            "SNIPER_CUDA=on, but no nvcc in CUDA_HOME, CUDACXX or PATH: install the CUDA toolkit"
        )
    return nvcc


class CMakeBuild(build_ext):
    """Configures and builds one CMake project into the place where setuptools wants the module."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        nvcc = cuda_compiler()
        args = [
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSNIPER_CUDA={'ON' if nvcc else 'OFF'}",
        ]
        if nvcc:
            args.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            archs = os.environ.get("SNIPER_CUDA_ARCHS", "80;90;100")
            args.append(f"-DCMAKE_CUDA_ARCHITECTURES={archs}")
        args += os.environ.get("CMAKE_ARGS", "").split()
        self.spawn(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *args])
        self.spawn(["cmake", "--build", str(build), "--target", "_C"])


# Folders of files that are no modules.
DATA = {
    "sniper.configs": ["*.yaml"],
    "sniper.compare.matrices": ["*.yaml"],
    "sniper.compare.assets": ["*"],
}

setup(
    # `kernels` is a name taken on PyPI, so the folder is installed inside the package.
    packages=[*find_packages(include=["sniper", "sniper.*"]), "sniper.kernels", *DATA],
    package_dir={"sniper.kernels": "kernels"},
    package_data=DATA,
    ext_modules=[Extension("sniper._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
