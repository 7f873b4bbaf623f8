# SPDX-License-Identifier: Apache-2.0
"""A preparation in shares gives the bytes of one at once, or says what is wrong with the shares."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from test_prepare import add_utterance, contents

from sniper.prepare import main
from sniper.tts.corpus.demo import write_demo_corpus
from sniper.tts.corpus.shards import SHARDS, Shard

WORDS = ["hello", "world", "again"]


@pytest.fixture
def corpus(tmp_path) -> Path:
    root = tmp_path / "corpus"
    for i in range(7):
        add_utterance(root, f"u{i}", [WORDS[i % 3], WORDS[(i + 1) % 3]], hz=120 + 7 * i)
    with (root / "metadata.csv").open("a") as file:
        file.write("without|hello\n")  # a line that cannot be used, which counts in the shares
    return root


@pytest.fixture
def run(corpus, tmp_path):
    def run(*options: str, out: str = "out") -> int:
        command = ["ljspeech", "--root", str(corpus), "--out", str(tmp_path / out), "--quiet"]
        return main([*command, "--valid", "2", "--workers", "1", *options])

    return run


def shares(run, *which: str, out: str = "out") -> None:
    for each in which:
        assert run("--shard", each, out=out) == 0


def test_shares_make_what_is_made_at_once(run, tmp_path, capsys):
    shares(run, "3/3", "1/3", "2/3", "2/3")
    assert run("--merge") == 0
    assert run(out="whole") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "corpus.json", "train.safetensors", "valid.safetensors"
    ]  # fmt: skip
    capsys.readouterr()
    assert run() == 0 and "was prepared already" in capsys.readouterr().out
    assert run("--merge") == 2
    assert "found none; " in capsys.readouterr().err  # merged before
    assert run("--shard", "1/3") == 2
    assert "is prepared already; choose another --out" in capsys.readouterr().err


def test_a_share_goes_on_and_counts_by_contents_elsewhere(run, corpus, tmp_path, monkeypatch):
    from sniper.tts.corpus import build

    analyzed = []

    def stopping(utterances, config, workers):
        for record in real(utterances, config, workers):
            analyzed.append(record.id)
            yield record
            if len(analyzed) == 2:
                raise KeyboardInterrupt

    real = build.analyze_all
    monkeypatch.setattr(build, "analyze_all", stopping)
    assert run("--shard", "1/2") == 130
    assert run("--shard", "1/2") == 0
    assert sorted(analyzed) == ["u0", "u2", "u4", "u6"]  # each once
    # The second machine has a copy of the recordings, whose times are others.
    shares(run, "2/2")
    for path in corpus.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    assert run("--merge") == 0 and run(out="whole") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "-1/2", "a/b", "1/2/3"])
def test_shares_that_there_are_not(run, text, capsys):
    with pytest.raises(ValueError, match="expected I/N with 1 <= I <= N, such as 2/8"):
        Shard.parse(text)
    with pytest.raises(SystemExit):
        run(f"--shard={text}")
    assert "expected I/N with 1 <= I <= N" in capsys.readouterr().err


def test_wrong_shares_are_refused(run, corpus, tmp_path, capsys):
    def refused(*options: str) -> str:
        assert run(*options) == 2
        return capsys.readouterr().err

    assert "expected at most 8 shares, one an utterance" in refused("--shard", "1/9")
    shares(run, "1/3", "3/3")
    assert "missing 2: run the same command with --shard 2/3" in refused("--merge")
    assert "features.f0_min is 80.0 there, 90.0 now" in refused("--shard", "1/3", "--f0-min", "90")
    folder = tmp_path / "out" / SHARDS
    shutil.copytree(folder / "3-of-3", folder / "2-of-3")  # somebody's idea of a missing share
    assert "expected share 2/3 to be finished, but 2 of 2 utterances" in refused("--merge")
    shutil.rmtree(folder / "2-of-3")
    shares(run, "2/3")
    shares(run, "1/2")
    assert "expected shares of one number" in refused("--merge")
    shutil.rmtree(folder / "1-of-2")
    assert "give it with --shard, not with --merge" in refused("--merge", "--force")
    add_utterance(corpus, "u0", ["again"], hz=300)  # its recording is another now
    lines = (corpus / "metadata.csv").read_text().splitlines()
    (corpus / "metadata.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "expected share 1/3 to be finished, but 1 of 3 utterances" in refused("--merge")
    (corpus / "metadata.csv").write_text("\n".join(lines[1:]) + "\n")
    assert "metadata_sha256 is" in refused("--merge")


def test_shares_are_aligned_on_the_way_as_the_whole_is(tmp_path):
    """Nothing depends on which utterances one process has aligned before."""
    root = tmp_path / "spoken"
    write_demo_corpus(root, 5, seed=3, voice="en-us", progress=False)
    (root / "alignments.jsonl").unlink()
    out, whole = tmp_path / "out", tmp_path / "whole"

    def run(folder: Path, *options: str) -> None:
        command = ["ljspeech", "--root", str(root), "--out", str(folder), "--quiet"]
        assert main([*command, "--valid", "1", "--workers", "1", *options]) == 0

    for share in ("2/2", "1/2"):
        run(out, "--shard", share)
    run(out, "--merge")
    run(whole)
    made, once = _files(out), _files(whole)
    infos = [json.loads(files.pop("corpus.json")) for files in (made, once)]
    assert made == once
    # With report and journal: what one at once leaves there, in the same order.
    assert len(made) == 2 + 5 + len(("align.json", "align.jsonl", "report.md", "alignment.png"))
    for info in infos:  # times and places on the disk are what differs
        info["sources"] = {name: line.split(" = ")[1] for name, line in info["sources"].items()}
        del info["settings"]["corpus"]["textgrids"], info["checksums"]["corpus.json"]
    assert infos[0] == infos[1]


def _files(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_aligner_that_trains_has_no_shares(run, capsys):
    assert run("--shard", "1/2", "--align", "learned") == 2
    assert "trains on the whole corpus, which no share is" in capsys.readouterr().err
