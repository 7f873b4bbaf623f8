# SPDX-License-Identifier: Apache-2.0
"""The README is short, and its Python runs as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import soundfile
import torch

from sniper.prepare import main as prepare
from sniper.synthesize import main as synthesize
from sniper.train import main as train
from sniper.tts.corpus.demo import write_demo_corpus

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_at_most_120_lines_with_the_picture_near_the_top():
    lines = README.splitlines()
    assert len(lines) <= 120
    picture = "bench/results/compare-real/loss.png"
    assert any(picture in line for line in lines[:10]) and (ROOT / picture).is_file()


def test_readme_says_what_is_not_measured():
    assert re.search(r"\*\*On a GPU\*\*, one look .*No other GPU was tried\.", README)


def test_two_commands_make_a_voice_of_a_folder_of_recordings(tmp_path, monkeypatch, capsys):
    """As they stand there, but for a run of one epoch of twelve utterances."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    write_demo_corpus(Path("recordings"), 12, 0, "en-us", False)
    for path in Path("recordings").iterdir():
        if path.name not in ("wavs", "metadata.csv"):
            path.unlink()  # what synthetic speech knows of itself, and recordings do not
    with Path("recordings/metadata.csv").open("a", encoding="utf-8") as file:
        file.write("other|Привет!\n")
    shutil.copy(next(Path("recordings/wavs").iterdir()), "recordings/wavs/other.wav")
    commands = re.findall(r"^python -m sniper\.(prepare|train) (.+)$", README, re.M)
    assert [name for name, _ in commands] == ["prepare", "train"]
    small = ["train.epochs=1", "train.workers=0", "train.threads=1", "sparsity.score_batches=1"]
    assert prepare(shlex.split(commands[0][1]) + ["--workers", "1"]) == 0
    assert "12 utterances aligned" in (said := capsys.readouterr().out) and "11 train" in said
    # What could not be aligned is named once, with the reason.
    assert "1 not aligned\n" in said and said.count("other") == 1
    assert "1 left out:\n  other: words that are not in Latin letters: привет" in said
    assert train(shlex.split(commands[1][1]) + small) == 0
    (line,) = re.findall(r"it speaks: `python -m sniper\.synthesize (.+?)`", README)
    assert synthesize(shlex.split(line)) == 0
    assert soundfile.info("out.wav").frames > 0


def test_the_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    assert names["snip"].sparsity == 0.0
    # What it learns by heart is noise of variance 1.
    assert names["loss_fn"](names["model"], names["batches"][0]) < 0.9
