# SPDX-License-Identifier: Apache-2.0
"""What a user installs: a wheel in a clean environment, and an editable checkout."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(p.name for p in (ROOT / "sniper/configs").glob("*.yaml"))
PROGRAM = """
import json, torch
import sniper, sniper.kernels, sniper._C
from importlib import resources
from sniper.ops.bits import pack_bits, unpack_bits
mask = torch.rand(13, 7) > 0.5
layer = sniper.BlockSparseLinear(32, 32, block_size=16)
layer.set_block_mask(torch.tensor([[True, False], [False, True]]))
print(json.dumps({
    "places": [m.__file__ for m in (sniper, sniper.kernels, sniper._C)],
    "cuda": sniper._C.with_cuda,
    "configs": sorted(p.name for p in (resources.files("sniper") / "configs").iterdir()),
    "bits": torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask),
    "shape": list(layer(torch.ones(2, 32)).shape),
}))
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# Lists architectures, but compiles nothing: a host compiler that is too new for it.
REFUSING_NVCC = """#!/bin/sh
case "$*" in
  *--list-gpu-arch*) echo compute_60; echo compute_75; echo compute_80; echo compute_87;;
  *) echo "host_config.h:143:2: error: #error -- unsupported GNU version!" >&2; exit 1;;
esac
"""
UNOPTIMISED = "-DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0"
# Has CMake compile the sources with pybind11's headers as one: those headers take most of the time.
TOGETHER = """
function(bindings_together)
  file(GLOB bindings ${CMAKE_SOURCE_DIR}/csrc/bind*.cpp)
  set_source_files_properties(${bindings} PROPERTIES UNITY_GROUP bindings)
  set_target_properties(_C PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()
cmake_language(DEFER CALL bindings_together)
"""
COMPLAINT = "error: #error -- unsupported GNU version!"


def script(path: Path, text: str) -> Path:
    """An executable file."""
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An sdist, the wheel built from it beside an nvcc that refuses, and what the build said.

    Both come from a copy: a build leaves folders in its source.
    """
    source = tmp_path_factory.mktemp("source")
    names = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    nvcc = script(tmp_path_factory.mktemp("cuda") / "nvcc", REFUSING_NVCC)
    # Every source is compiled, none is optimised, which would take four times as long: what is in
    # this wheel is called, not timed, and the checkout's own build is the optimised one.
    together = tmp_path_factory.mktemp("cmake") / "together.cmake"
    together.write_text(TOGETHER)
    options = f"{os.environ.get('CMAKE_ARGS', '')} {UNOPTIMISED} -DCMAKE_PROJECT_INCLUDE={together}"
    environment = {"SNIPER_CUDA": "auto", "CUDACXX": str(nvcc), "CMAKE_ARGS": options}
    said = run(sys.executable, "-m", "build", "--outdir", out, source, cwd=out, **environment)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel, said


def test_sdist_has_what_a_build_needs(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[0]).getnames()}
    wanted = set(run("git", "ls-files", "csrc", "kernels/*.py", "sniper", cwd=ROOT).splitlines())
    assert {name for name in wanted if (ROOT / name).is_file()} <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_auto_goes_on_without_cuda_and_says_why(built):
    lines = [line for line in built[2].splitlines() if "CUDA left out" in line]
    assert len(lines) == 1 and COMPLAINT in lines[0]


def test_wheel_contents(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {"sniper/__init__.py", f"sniper/_C{suffix}", "sniper/kernels/__init__.py"} <= names
    assert {f"sniper/configs/{name}" for name in CONFIGS} <= names
    data = run("git", "ls-files", "sniper/compare", "sniper/py.typed", cwd=ROOT).splitlines()
    assert {name for name in data if (ROOT / name).is_file()} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sniper"}


def test_installed_wheel_runs_elsewhere(built, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    ).strip()
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--no-deps", "--no-index", "--quiet", built[1]),
        cwd=tmp_path,
    )
    # The dependencies come from the environment that runs the tests, its editable hooks do not.
    places = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site) / "dependencies.pth").write_text("\n".join([*places, ""]))
    got = json.loads(run(python, "-c", PROGRAM, cwd=tmp_path).splitlines()[-1])
    assert all(Path(place).is_relative_to(environment) for place in got["places"])
    assert set(CONFIGS) <= set(got["configs"])
    assert got["cuda"] is False and got["bits"] and got["shape"] == [2, 32]
    said = run(environment / "bin/sniper-tts", "train", "--help", cwd=tmp_path)
    assert "--config" in said


def test_editable_install_finds_the_kernels_folder(tmp_path):
    got = json.loads(run(sys.executable, "-c", PROGRAM, cwd=tmp_path).splitlines()[-1])
    assert Path(got["places"][0]) == ROOT / "sniper/__init__.py"
    assert Path(got["places"][1]) == ROOT / "kernels/__init__.py"
    assert got["bits"] and got["shape"] == [2, 32]


@pytest.fixture
def setup_script(monkeypatch):
    """What setup.py defines; it builds nothing."""
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: None)
    for name in ("CUDACXX", "CUDA_HOME", "SNIPER_CUDA", "SNIPER_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("choice", "words"), [("on", "install the CUDA toolkit"), ("perhaps", "auto, on or off")]
)
def test_cuda_that_cannot_be_built_says_so(setup_script, monkeypatch, choice, words):
    cuda_compiler = setup_script["cuda_compiler"]
    monkeypatch.setitem(cuda_compiler.__globals__, "find_nvcc", lambda: None)
    monkeypatch.setenv("SNIPER_CUDA", choice)
    with pytest.raises(SystemExit, match=words):
        cuda_compiler()
    monkeypatch.setenv("SNIPER_CUDA", "auto")
    assert cuda_compiler() is None


def test_on_with_a_compiler_that_refuses_is_its_message(tmp_path):
    nvcc = script(tmp_path / "nvcc", REFUSING_NVCC)
    folders = ("--build-temp", tmp_path / "temp", "--build-lib", tmp_path / "lib")
    with pytest.raises(AssertionError) as caught:
        run(
            *(sys.executable, "setup.py", "build_ext", *folders),
            cwd=ROOT,
            SNIPER_CUDA="on",
            CUDACXX=str(nvcc),
        )
    assert "SNIPER_CUDA=on" in str(caught.value) and COMPLAINT in str(caught.value)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ((60, 75, 80, 87), "75-real;80-real;80-virtual"),
        ((75, 80, 90, 100, 103, 120, 121), "75-real;80-real;90-real;100-real;120-real;120-virtual"),
        ((52, 70, 72), "72-real;72-virtual"),  # an old toolkit for old GPUs
    ],
)
def test_architectures_are_those_that_nvcc_knows(setup_script, tmp_path, listed, wanted):
    lines = "\n".join(f"echo compute_{number}" for number in listed)
    nvcc = script(tmp_path / "nvcc", f"#!/bin/sh\n{lines}\n")
    assert setup_script["cuda_architectures"](str(nvcc)) == wanted


@pytest.mark.parametrize(
    ("nvcc", "words"),
    [
        ("#!/bin/sh\necho no licence; exit 3\n", "no licence"),
        ("#!/bin/sh\nexit 3\n", "exited with 3"),
        ("#!/bin/sh\necho version 9\n", "names no architecture: version 9"),
        (None, "No such file"),
    ],
)
def test_an_nvcc_that_does_not_run(setup_script, tmp_path, nvcc, words):
    path = script(tmp_path / "nvcc", nvcc) if nvcc else tmp_path / "nvcc"
    with pytest.raises(setup_script["CudaUnusable"], match=words):
        setup_script["cuda_architectures"](str(path))


def test_which_nvcc_is_taken(setup_script, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    home = script(tmp_path / "bin/nvcc", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup_script["find_nvcc"]() == str(home)
    monkeypatch.setenv("CUDACXX", "/opt/other/nvcc")
    assert setup_script["find_nvcc"]() == "/opt/other/nvcc"


def test_constraints_satisfy_what_is_declared():
    """A fresh machine that installs with the constraints gets what the ranges allow."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = pin
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = [Requirement(line) for part in (project["dependencies"], *extras) for line in part]
    for wanted in declared:
        name = canonicalize_name(wanted.name)
        if name != "sniper-tts":
            assert name in pins, f"{name}: not in constraints.txt (make constraints)"
            (version,) = (spec.version for spec in pins[name].specifier)
            assert wanted.specifier.contains(version), f"{wanted} against {pins[name]}"
