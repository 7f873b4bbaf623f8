# SPDX-License-Identifier: Apache-2.0
"""One corpus, one run and one comparison for all cases, and which cases run.

The ordinary suite runs a sample, the same every time; `make campaign` runs all. A case that is
named on the command line always runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from campaigning import TEXT, Matrix, Trained, call, tree
from speech import tiny

from sniper.training.config import dump

# Cases of each family in the ordinary suite: 50 in all. Of a rank that dies under torchrun,
# tests/training/test_ranks.py has the one case that the ordinary suite needs.
SAMPLE = {
    "test_damage": 10,
    "test_kills": 3,
    "test_full_disk": 2,
    "test_bad_corpora": 8,
    "test_bad_settings": 6,
    "test_command_lines": 5,
    "test_wrong_calls": 5,
    "test_other_peoples_code": 5,
    "test_torchrun": 0,
    "test_ranks_apart": 6,
}
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--campaign") or any("::" in word for word in config.args):
        return
    ours = [item for item in items if item.path.parent == HERE]
    left_out = set()
    for family, count in SAMPLE.items():
        # By the checksum of its name: a case that is added moves no other.
        cases = [item for item in ours if item.path.stem == family]
        # A comparison takes as long as all others together; its own tests kill and damage it too.
        cases = [item for item in cases if "matrix" not in getattr(item, "fixturenames", ())]
        cases.sort(key=lambda item: zlib.crc32(item.name.encode()))
        left_out |= {item for item in ours if item.path.stem == family} - set(cases[:count])
    if left_out:
        config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.failed and item.path.parent == HERE:
        replay = f".venv/bin/python -m pytest '{item.nodeid}'"
        report.sections.append(("this case alone", replay))
    return report


@pytest.fixture(autouse=True)
def all_on_one_thread(one_thread: None) -> None:
    """Every case: as fast for small models, and the same bits whoever runs beside it."""


@pytest.fixture(scope="session")
def trained(
    demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory, choices_of_its_own: None
) -> Iterator[Trained]:
    """To be read only, or copied with `linked`."""
    folder = tmp_path_factory.mktemp("campaign")
    few = {"batches_per_epoch": 2, "max_frames": 700, "log_every": 1}
    config = folder / "tiny.yaml"
    config.write_text(dump(tiny(demo_corpus, folder / "run", train=few)), encoding="utf-8")
    made = Trained(demo_corpus, config, folder / "run", folder / "whole", b"")
    for output, epochs in ((made.run, 1), (made.whole, 2)):
        assert call("train", *made.arguments(output, epochs=epochs)).status == 0
    wav = folder / "spoken.wav"
    assert call("synthesize", TEXT, "--checkpoint", made.run, "-o", wav).status == 0
    before = {path: tree(path) for path in (folder, demo_corpus)}
    yield Trained(demo_corpus, config, made.run, made.whole, wav.read_bytes())
    for path, contents in before.items():
        assert tree(path) == contents, f"a case has written through a link into {path}"


@pytest.fixture(scope="session")
def matrix(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    folder = tmp_path_factory.mktemp("matrix")
    base = yaml.safe_load(trained.config.read_text(encoding="utf-8"))
    base["train"]["epochs"] = 1
    (folder / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    plan = {
        "title": "Two arms",
        "config": "base.yaml",
        "seeds": [0],
        "arms": [{"name": "block"}, {"name": "dense", "sparsity": {"schedule": {0: 0.0}}}],
        "reference": "dense",
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    made = Matrix(folder / "two.yaml", folder / "out")
    assert call("compare", *made.options(made.out), "--sentences", "1").status == 0
    return made
