# SPDX-License-Identifier: Apache-2.0
"""What a user installs: a wheel in a clean environment, and an editable checkout."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CPU-only wheel, built from a copy: a build leaves folders in its source."""
    source = tmp_path_factory.mktemp("source")
    names = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps"),
        *("--disable-pip-version-check", "-w", out, source),
        cwd=source,
        SNIPER_CUDA="off",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    (path,) = out.glob("*.whl")
    return path


def test_wheel_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {"sniper/__init__.py", f"sniper/_C{suffix}", "sniper/kernels/__init__.py"} <= names
    assert {f"sniper/configs/{name}" for name in CONFIGS} <= names
    compare = {"sniper/compare/assets/report.html"}
    assert {*compare, "sniper/compare/matrices/demo.yaml"} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sniper"}


def test_installed_wheel_runs_elsewhere(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    ).strip()
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--no-deps", "--no-index", "--quiet", wheel),
        cwd=tmp_path,
    )
    # The dependencies come from the environment that runs the tests, its editable hooks do not.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    got = json.loads(run(python, "-c", PROGRAM, cwd=tmp_path).splitlines()[-1])
    assert all(Path(place).is_relative_to(environment) for place in got["places"])
    assert set(CONFIGS) <= set(got["configs"])
    assert got["cuda"] is False and got["bits"] and got["shape"] == [2, 32]


def test_editable_install_finds_the_kernels_folder(tmp_path):
    got = json.loads(run(sys.executable, "-c", PROGRAM, cwd=tmp_path).splitlines()[-1])
    assert Path(got["places"][0]) == ROOT / "sniper/__init__.py"
    assert Path(got["places"][1]) == ROOT / "kernels/__init__.py"
    assert got["bits"] and got["shape"] == [2, 32]


@pytest.mark.parametrize(
    ("choice", "words"), [("on", "install the CUDA toolkit"), ("perhaps", "auto, on or off")]
)
def test_cuda_that_cannot_be_built_says_so(monkeypatch, choice, words):
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: None)
    cuda_compiler = runpy.run_path(str(ROOT / "setup.py"))["cuda_compiler"]
    monkeypatch.setitem(cuda_compiler.__globals__, "find_nvcc", lambda: None)
    monkeypatch.setenv("SNIPER_CUDA", choice)
    with pytest.raises(SystemExit, match=words):
        cuda_compiler()
    monkeypatch.setenv("SNIPER_CUDA", "auto")
    assert cuda_compiler() is None
