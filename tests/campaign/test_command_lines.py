# SPDX-License-Identifier: Apache-2.0
"""Command lines made from each command's own parser: a wrong word is one line and status 2."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from campaigning import TEXT, Trained, call, refused, tree

from sniper.cli import COMMANDS

NUMBERS = ("x", "", "nan", "1e99", "0x10", "1.5", "-1", "9" * 5000, "１")


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a command makes when it is called."""
    made: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *more: object) -> None:
        made.append(parser)
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        call(command)
    return made[0]


def options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.option_strings and "--help" not in a.option_strings]


def parsers(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], list]:
    """Options by the words that come before them, for a command and its sub-commands."""
    parser = parser_of(command, monkeypatch)
    found = {(): options_of(parser)}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {(name,): options_of(sub) for name, sub in action.choices.items()}
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_without_a_value_or_of_another_type(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    for words, options in parsers(command, monkeypatch).items():
        for option in options:
            name = option.option_strings[-1]
            if option.nargs == 0:
                refused(call(command, *words, f"{name}=yes"), name, statuses=(2,))
                continue
            refused(call(command, *words, name), name, statuses=(2,))
            if option.choices:
                refused(call(command, *words, name, "other"), name, statuses=(2,))
            # Numbers fail in the parser itself, whatever else is missing.
            for text in NUMBERS[:5] if option.type is int else ("x", "") * (option.type is float):
                refused(call(command, *words, f"{name}={text}"), name, statuses=(2,))
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("word", ["--no-such-option", "--", "-", "--=x", "--config"])
def test_an_unknown_word(command: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    if (command, word) in (("train", "--"), ("compare", "--"), ("doctor", "--")):
        word = "--no=such"  # alone it ends the options, and the rest is the demo
    refused(call(command, word), statuses=(1, 2))
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["", "trian", "--versions", "a b", "x" * 9999, "../train"])
def test_a_command_that_is_not_there(name: str):
    said = refused(call("cli", name), statuses=(2,))
    assert "train" in said or "expected" in said


TEXTS = ("", " ", "\n", "�", "{", "}", "{}", "{HH AH0", "{XX QQ}", "...", "🙂")
TEXTS += ("日本語", "a" * 3000, "{" * 500, "1" * 400, "'", "--", "\t\x07\x1b[31m", "नमस्ते", "\u202e")


@pytest.mark.parametrize("text", TEXTS, ids=[ascii(t[:20]) for t in TEXTS])
def test_a_text_is_spoken_or_refused(text: str, trained: Trained, tmp_path: Path):
    wav = tmp_path / "out.wav"
    done = call("synthesize", "--checkpoint", trained.run, "-o", wav, "--", text)
    if done.status == 0:
        assert wav.stat().st_size > 44
    else:
        refused(done, statuses=(1,))
        assert tree(tmp_path) == {}


NUMBER_OPTIONS = [(o, v) for o in ("--speed", "--pitch", "--energy") for v in
                  ("0", "-1", "nan", "inf", "-inf", "1e30", "1e-30", "x")]  # fmt: skip


@pytest.mark.parametrize("option, value", NUMBER_OPTIONS)
def test_a_factor_out_of_range(option: str, value: str, trained: Trained, tmp_path: Path):
    wav = tmp_path / "out.wav"
    done = call("synthesize", TEXT, "--checkpoint", trained.run, "-o", wav, f"{option}={value}")
    if (option, value) in (("--pitch", "0"), ("--pitch", "-1")):
        assert done.status == 0 and wav.stat().st_size > 44
        return
    if done.status == 0:
        assert (option, value) in (("--pitch", "1e-30"), ("--energy", "1e-30"))
        return
    refused(done, option.strip("-"), statuses=(1, 2))
    assert not wav.exists()


def _places(folder: Path) -> dict[str, Path]:
    (folder / "a file").write_text("here")
    (folder / "a folder.wav").mkdir()
    (folder / "loop").symlink_to("loop")
    return {
        "below a file": folder / "a file" / "out.wav",
        "a folder": folder / "a folder.wav",
        "a loop": folder / "loop",
        "too long": folder / ("x" * 300),
        "full": Path("/dev/full"),
    }


@pytest.mark.parametrize("where", ["below a file", "a folder", "a loop", "too long", "full"])
@pytest.mark.parametrize("command", ["synthesize", "mel", "export", "train", "prepare", "compare"])
def test_a_place_that_cannot_be_written(command: str, where: str, trained: Trained, tmp_path: Path):
    place = _places(tmp_path)[where]
    if command in ("train", "prepare", "compare"):
        # These make a folder, and one that is there is theirs to fill.
        place = place / "out" if where == "a folder" and command != "train" else place
    if where == "a folder" and command in ("train", "prepare", "compare"):
        place = tmp_path / "a file"
    words = {
        "synthesize": [TEXT, "--checkpoint", trained.run, "-o", place],
        "mel": [TEXT, "--checkpoint", trained.run, "--mel", f"{place}.npy"],
        "export": ["--checkpoint", trained.run, "-o", f"{place}.pt2"],
        "train": trained.arguments(place),
        "prepare": ["demo", "--out", place, "--utterances", 2, "--quiet", "--workers", 1],
        "compare": ["--config", "demo", "--output", place],
    }[command]
    if where == "full" and command in ("mel", "export"):
        pytest.skip("a name with a suffix is no device")
    if where == "a folder" and command in ("mel", "export"):
        (tmp_path / f"a folder.wav.{'npy' if command == 'mel' else 'pt2'}").mkdir()
    if where == "a loop" and command in ("mel", "export"):
        name = f"loop.{'npy' if command == 'mel' else 'pt2'}"
        (tmp_path / name).symlink_to(name)
    before = tree(tmp_path)
    done = call("synthesize" if command == "mel" else command, *words)
    refused(done, place.name, "too long", statuses=(1, 2))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("where", ["nowhere", "a file", "an empty folder", "a loop"])
@pytest.mark.parametrize("command", ["synthesize", "export", "train", "prepare", "compare"])
def test_a_place_that_cannot_be_read(command: str, where: str, trained: Trained, tmp_path: Path):
    (tmp_path / "a file").write_text("nothing")
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "a loop").symlink_to("a loop")
    place = tmp_path / where
    before, out = tree(tmp_path), tmp_path / "out"
    words = {
        "synthesize": [TEXT, "--checkpoint", place, "-o", out / "x.wav"],
        "export": ["--checkpoint", place, "-o", out / "x.pt2"],
        "train": ["--config", place, f"output={out}"],
        "prepare": ["ljspeech", "--root", place, "--out", out, "--quiet"],
        "compare": ["--config", place, "--output", out],
    }[command]
    refused(call(command, *words), place.name, statuses=(1, 2))
    assert tree(tmp_path) == before
