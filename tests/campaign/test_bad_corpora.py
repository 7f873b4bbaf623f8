# SPDX-License-Identifier: Apache-2.0
"""Recordings, alignments and tables as strangers have them: an utterance is taken as it is, left
out by name, or the whole refused; the others never suffer.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from campaigning import call, put, refused, seeded
from speech import differences

from sniper.tts.corpus.dataset import FeatureDataset, load_corpus_info

PHONES = ("HH", "AH0", "L", "OW1", "W", "ER1", "L", "D")
NAMES = ("u0", "u1", "u2", "u3")
SECONDS, RATE = 0.9, 16000
Mutation = Callable[[Path], object]


def buzz(seconds: float = SECONDS, rate: int = RATE, hz: float = 140.0) -> np.ndarray:
    clock = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hz * k * clock) / k for k in range(1, 9)) * 0.2


def textgrid(
    phones: list[tuple[object, object, str]] | None = None,
    tier: str = "phones",
    kind: str = "IntervalTier",
    seconds: object = SECONDS,
) -> str:
    """A short TextGrid with words and phones."""
    times = np.linspace(0.1, SECONDS - 0.1, len(PHONES) + 1).round(4).tolist()
    own = [(0, 0.1, ""), *zip(times, times[1:], PHONES, strict=False), (times[-1], SECONDS, "")]
    words = [(0, 0.1, ""), (0.1, times[4], "hello"), (times[4], times[-1], "world")]
    words.append((times[-1], SECONDS, ""))
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(seconds)]
    lines += ["<exists>", "2"]
    for name, entries, what in (("words", words, "IntervalTier"), (tier, phones or own, kind)):
        lines += [f'"{what}"', f'"{name}"', "0", str(seconds), str(len(entries))]
        for start, end, label in entries:
            lines += [str(start), *([str(end)] if what == "IntervalTier" else []), f'"{label}"']
    return "\n".join(lines) + "\n"


def wav(root: Path) -> Path:
    return root / "wavs" / "u1.wav"


def grid(root: Path) -> Path:
    return root / "TextGrid" / "u1.TextGrid"


def sound(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16", form: str = "WAV"):
    return lambda root: soundfile.write(wav(root), samples, rate, subtype=subtype, format=form)


def header(at: int, layout: str, value: int) -> Mutation:
    """Another number in the wav's header."""

    def mutate(root: Path) -> None:
        content = bytearray(wav(root).read_bytes())
        struct.pack_into(layout, content, at, value)
        put(wav(root), bytes(content))

    return mutate


def replaced(where: Callable[[Path], Path], how: str) -> Mutation:
    def mutate(root: Path) -> None:
        path = where(root)
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "loop":
            path.symlink_to(path.name)

    return mutate


def written(where: Callable[[Path], Path], content: bytes | str) -> Mutation:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: put(where(root), data)


def at_times(*times: object) -> Mutation:
    """The phones tier with these boundaries."""
    entries = [(a, b, "AH0") for a, b in zip(times, times[1:], strict=False)]
    return lambda root: grid(root).write_text(textgrid(entries))


def cut(where: Callable[[Path], Path], share: float) -> Mutation:
    def mutate(root: Path) -> None:
        content = where(root).read_bytes()
        put(where(root), content[: round(share * len(content))])

    return mutate


noise = np.random.RandomState(0).standard_normal(round(SECONDS * RATE))
with_nan, with_inf = buzz(), buzz()
with_nan[500], with_inf[500] = np.nan, np.inf

# Left out by its name, with a reason.
LISTED: dict[str, Mutation] = {
    "wav missing": replaced(wav, "nothing"),
    "wav a folder": replaced(wav, "folder"),
    "wav a loop": replaced(wav, "loop"),
    "wav empty": written(wav, b""),
    "wav a header alone": cut(wav, 44 / 28844),
    "wav half a header": written(wav, b"RIFF\x24\0\0\0WAVEfmt "),
    "wav cut": cut(wav, 0.5),
    "wav text": written(wav, "not a wav\n" * 99),
    "wav random": written(wav, seeded("wav").randbytes(9000)),
    "wav in capitals": lambda root: wav(root).rename(wav(root).with_suffix(".WAV")),
    "wav with NaN": sound(with_nan, subtype="FLOAT"),
    "wav with infinity": sound(with_inf, subtype="DOUBLE"),
    "wav of 1e308": sound(noise / np.abs(noise).max() * 1e308, subtype="DOUBLE"),
    "wav scaled to 32768": sound(buzz() * 32768, subtype="FLOAT"),
    "wav all zero": sound(np.zeros(round(SECONDS * RATE))),
    "wav stereo that cancels": sound(np.stack([buzz(), -buzz()], axis=1)),
    "wav of one sample": sound(buzz()[:1]),
    "wav of 100 samples": sound(buzz()[:100]),
    "wav at 1 Hz": header(24, "<I", 1),
    "wav at 1 GHz": header(24, "<I", 10**9),
    "wav at 0 Hz": header(24, "<I", 0),
    "wav with 0 channels": header(22, "<H", 0),
    "wav with 9999 channels": header(22, "<H", 9999),
    "wav with 3 bits": header(34, "<H", 3),
    "wav too long": sound(buzz(3.0)),
    "wav too short": sound(buzz(0.5)),
    "grid missing": replaced(grid, "nothing"),
    "grid a folder": replaced(grid, "folder"),
    "grid a loop": replaced(grid, "loop"),
    "grid empty": written(grid, b""),
    "grid text": written(grid, "nonsense"),
    "grid random": written(grid, seeded("grid").randbytes(900)),
    "grid cut": cut(grid, 0.6),
    "grid JSON": written(grid, "{}"),
    "grid with an empty tier": lambda r: grid(r).write_text(
        textgrid().rsplit('"IntervalTier"', 1)[0] + f'"IntervalTier"\n"phones"\n0\n{SECONDS}\n0\n'
    ),
    "grid without phones": lambda r: grid(r).write_text(textgrid(tier="letters")),
    "grid of points": lambda r: grid(r).write_text(textgrid(kind="TextTier")),
    "grid of pauses": lambda r: grid(r).write_text(textgrid([(0, SECONDS, "sil")])),
    "grid of noise": lambda r: grid(r).write_text(textgrid([(0, SECONDS, "spn")])),
    "grid of SPN": lambda r: grid(r).write_text(textgrid([(0, SECONDS, "SPN")])),
    "grid of signs": lambda r: grid(r).write_text(textgrid([(0, SECONDS, "!?")])),
    "times of NaN": at_times(0, "nan", SECONDS),
    "times of infinity": at_times(0, 0.3, "inf"),
    "times that fall": at_times(0, 0.6, 0.3, SECONDS),
    "times of words": at_times(0, "soon", SECONDS),
    "times of 1e308": at_times(0, 0.5, 1e308),
    "times that are negative": at_times(-5, -4, -3),
    "times of another file": at_times(0, 1.0, 2.0),
    "a phone of thirty seconds": lambda r: (
        soundfile.write(wav(r), buzz(31.0), RATE),
        grid(r).write_text(textgrid([(0, 0.5, "AH0"), (0.5, 31.0, "L")], seconds=31.0)),
    ),
    "two grids of one name": lambda r: (
        [(r / "TextGrid" / who).mkdir() for who in ("ann", "bob")],
        grid(r).rename(r / "TextGrid" / "ann" / "u1.TextGrid"),
        (r / "TextGrid" / "bob" / "u1.TextGrid").write_text(textgrid()),
    ),
}
# Taken, and the same sentence as before.
TAKEN: dict[str, Mutation] = {
    "a grid of its name in a folder": lambda r: (
        (r / "TextGrid" / "bob").mkdir(),
        (r / "TextGrid" / "bob" / "u1.TextGrid").write_text("nonsense"),
    ),
    "8 kHz": sound(buzz(rate=8000), 8000),
    "96 kHz": sound(buzz(rate=96000), 96000),
    "8 bit": sound(buzz(), subtype="PCM_U8"),
    "24 bit": sound(buzz(), subtype="PCM_24"),
    "32 bit": sound(buzz(), subtype="PCM_32"),
    "float": sound(buzz(), subtype="DOUBLE"),
    "stereo": sound(np.stack([buzz(), buzz()], axis=1)),
    "FLAC by the name of wav": sound(buzz(), form="FLAC"),
    "a chunk of remarks": lambda r: put(
        wav(r), (w := wav(r).read_bytes())[:36] + b"LIST\x04\0\0\0abcd" + w[36:]
    ),
    "grid in UTF-16": lambda r: grid(r).write_bytes(textgrid().encode("utf-16")),
    "grid with a BOM": lambda r: grid(r).write_bytes(b"\xef\xbb\xbf" + textgrid().encode()),
    "grid with CRLF": lambda r: grid(r).write_bytes(textgrid().replace("\n", "\r\n").encode()),
    "grid of a speaker": lambda r: grid(r).write_text(textgrid(tier="LJ - phones")),
    "table with CRLF": lambda r: (r / "metadata.csv").write_bytes(
        (r / "metadata.csv").read_bytes().replace(b"\n", b"\r\n")
    ),
    "table with a BOM": lambda r: (r / "metadata.csv").write_bytes(
        b"\xef\xbb\xbf" + (r / "metadata.csv").read_bytes()
    ),
    "table with empty lines": lambda r: (r / "metadata.csv").write_bytes(
        (r / "metadata.csv").read_bytes().replace(b"\n", b"\n\n  \n")
    ),
    "files that nobody names": lambda r: (
        (r / "wavs" / "other.wav").write_bytes(b""),
        (r / "TextGrid" / "notes.txt").write_text("mine"),
        (r / "TextGrid" / "other.TextGrid").write_text("x"),
    ),
}
# A line that is added to the table, and what the list must say of it.
LINES: dict[str, tuple[bytes, str]] = {
    "no bar": (b"a line without a bar", "metadata.csv:5"),
    "six bars": (b"x|a|b|c|d|e|f", "metadata.csv:5"),
    "no text": (b"u9|", "u9"),
    "no id": (b"|some text", "metadata.csv:5"),
    "an id twice": (b"u1|hello again", "u1"),
    "an id above": (b"../../etc/passwd|hello", "leaves the corpus"),
    "an absolute id": (b"/etc/passwd|hello", "leaves the corpus"),
    "NUL in an id": (b"u\0x|hello", "metadata.csv:5"),
    "latin-1": "u8|t\xe4st".encode("latin-1") and ("u8|t\xe4st".encode("latin-1"), "UTF-8"),
    "random": (b"\xff\xfe\xfd|\x80\x81", "UTF-8"),
    "an id of 5000 letters": (b"x" * 5000 + b"|hello", "x" * 50),
    "an unknown id": ("ü9|hello".encode(), "ü9"),
    "a line of a megabyte": (b"u7|" + b"hello " * 170_000, "u7"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four utterances."""
    root = tmp_path / "corpus"
    for folder in ("wavs", "TextGrid"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        soundfile.write(root / "wavs" / f"{name}.wav", buzz(hz=120 + 15 * number), RATE)
        (root / "TextGrid" / f"{name}.TextGrid").write_text(textgrid())
    table = "".join(f"{name}|hello world\n" for name in NAMES)
    (root / "metadata.csv").write_text(table)
    return root


def prepare(root: Path, out: Path, *more: object):
    words = ["ljspeech", "--root", root, "--out", out, "--valid", 1, "--quiet", "--workers", 1]
    return call("prepare", *words, *more)


def sound_corpus(out: Path) -> dict[str, dict]:
    """Utterances by name, after a look at all numbers that training would see."""
    info = load_corpus_info(out)
    for name, value in vars(info.statistics).items():
        assert np.isfinite(value).all(), name
    found = {}
    for split in ("train", "valid"):
        for item in FeatureDataset(out / f"{split}.safetensors"):
            values = (item.mel, item.pitch, item.energy)
            assert all(np.isfinite(v).all() and np.abs(v).max() < 100 for v in values), item.id
            assert item.durations.sum() == len(item.mel) and (item.durations >= 0).all()
            assert item.id not in found
            found[item.id] = {"tokens": item.tokens.tolist(), "frames": len(item.mel)}
    return found


@pytest.mark.parametrize("case", LISTED)
def test_an_utterance_that_cannot_be_used_is_left_out_by_name(
    case: str, root: Path, tmp_path: Path
):
    LISTED[case](root)
    out = tmp_path / "out"
    done = prepare(root, out)
    assert done.status == 0 and "Traceback" not in done.out + done.err, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("  u1: ")]
    assert "1 left out" in done.out and "unexpected error" not in line, line
    assert not any(word in line for word in ("Error:", "NoneType", "object at")), line
    assert sorted(sound_corpus(out)) == ["u0", "u2", "u3"]
    # The others are as if it had never been there.
    (root / "metadata.csv").write_text("".join(f"{n}|hello world\n" for n in NAMES if n != "u1"))
    assert prepare(root, tmp_path / "without").status == 0
    for name in ("train.safetensors", "valid.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    strict = prepare(root, tmp_path / "strict", "--strict")
    assert strict.status in (0, 2)


@pytest.mark.parametrize("case", TAKEN)
def test_what_recordings_are_like_is_taken(case: str, root: Path, tmp_path: Path):
    assert prepare(root, tmp_path / "before").status == 0
    wanted = sound_corpus(tmp_path / "before")
    TAKEN[case](root)
    done = prepare(root, tmp_path / "out")
    assert done.status == 0 and "left out" not in done.out, done.out
    assert differences(sound_corpus(tmp_path / "out"), wanted) == []


@pytest.mark.parametrize("case", LINES)
def test_a_line_of_the_table_that_cannot_be_used(case: str, root: Path, tmp_path: Path):
    line, said = LINES[case]
    with (root / "metadata.csv").open("ab") as file:
        file.write(line + b"\n")
    done = prepare(root, tmp_path / "out")
    assert done.status == 0 and "1 left out" in done.out, done.out + done.err
    lines = done.out.splitlines()
    told = lines[1 + next(i for i, line in enumerate(lines) if "1 left out" in line)]
    assert said in told, told
    assert len(told) < 6000 and sorted(sound_corpus(tmp_path / "out")) == list(NAMES)


TABLES: dict[str, Mutation] = {
    "missing": lambda r: (r / "metadata.csv").unlink(),
    "a folder": replaced(lambda r: r / "metadata.csv", "folder"),
    "a loop": replaced(lambda r: r / "metadata.csv", "loop"),
    "empty": written(lambda r: r / "metadata.csv", b""),
    "UTF-16": lambda r: put(r / "metadata.csv", (r / "metadata.csv").read_text().encode("utf-16")),
    "random": written(lambda r: r / "metadata.csv", seeded("table").randbytes(3000)),
    "no folder of wavs": lambda r: (r / "wavs").rename(r / "elsewhere"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_corpus_that_is_none(case: str, root: Path, tmp_path: Path):
    TABLES[case](root)
    done = prepare(root, tmp_path / "out")
    refused(done, str(root), "metadata.csv", statuses=(1, 2))
    assert not (tmp_path / "out" / "corpus.json").exists()


def entry(**changes: object) -> str:
    """u1's line of alignments.jsonl."""
    starts = np.linspace(0, round(SECONDS * RATE), len(PHONES), endpoint=False).astype(int).tolist()
    whole = {"id": "u1", "phones": list(PHONES), "starts": starts, "sample_rate": RATE}
    whole["samples"] = round(SECONDS * RATE)
    return json.dumps({k: v for k, v in (whole | changes).items() if v != "left out"})


ENTRIES = {
    "a list": "[]",
    "a number": "3",
    "no JSON": "{",
    "deep": "[" * 100_000,
    **{f"without {key}": entry(**{key: "left out"})
       for key in ("id", "phones", "starts", "samples", "sample_rate")},
    **{f"{key} {value!r:.20}": entry(**{key: value})
       for key in ("id", "phones", "starts", "samples", "sample_rate")
       for value in (None, {}, -1, math.nan, 10**400, "", True)},
    "a rate of 0": entry(sample_rate=0),
    "starts that fall": entry(starts=[0, 9, 8, 7, 6, 5, 4, 3]),
    "starts behind the end": entry(starts=[0, 1, 2, 3, 4, 5, 6, 10**9]),
    "phones of numbers": entry(phones=list(range(8))),
    "phones that are empty": entry(phones=[""] * 8),
}  # fmt: skip


@pytest.mark.parametrize("case", ENTRIES)
def test_a_line_of_alignments_that_is_none(case: str, root: Path, tmp_path: Path):
    (root / "TextGrid").rename(tmp_path / "unused")
    lines = [entry(id=name) for name in NAMES if name != "u1"] + [ENTRIES[case]]
    (root / "alignments.jsonl").write_text("\n".join(lines) + "\n")
    done = prepare(root, tmp_path / "out")
    assert done.status == 0 and "Traceback" not in done.out + done.err, done.err
    assert "  u1: " in done.out and "unexpected error" not in done.out, done.out
    assert sorted(sound_corpus(tmp_path / "out")) == ["u0", "u2", "u3"]


# Nothing is wrong with a file, and still a person must be told: change, and words of the report.
HEALTH: dict[str, tuple[Mutation, str]] = {
    "all voices above the limits": (
        lambda r: [soundfile.write(r / "wavs" / f"{n}.wav", buzz(hz=900), RATE) for n in NAMES],
        "no voiced frame",
    ),
    "whispered": (
        lambda r: [soundfile.write(r / "wavs" / f"{n}.wav", noise * 0.05, RATE) for n in NAMES],
        "no voiced frame",
    ),
}


@pytest.mark.parametrize("case", HEALTH)
def test_a_whole_corpus_that_is_unusual_is_told(case: str, root: Path, tmp_path: Path):
    mutate, words = HEALTH[case]
    mutate(root)
    done = prepare(root, tmp_path / "out")
    assert done.status == 0 and words in done.err, done.err
    assert prepare(root, tmp_path / "strict", "--strict").status == 2
