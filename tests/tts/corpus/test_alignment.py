# SPDX-License-Identifier: Apache-2.0
"""TextGrids as MFA and Praat write them, and alignments.jsonl."""

import json
import re

import numpy as np
import pytest

from sniper.tts.corpus.alignment import phonemes_of, read_alignments, read_textgrid
from sniper.tts.errors import SpeechError, UtteranceError

WORDS = [(0, 0.2, ""), (0.2, 0.6, "Hello"), (0.6, 0.7, ""), (0.7, 1.0, "odd"), (1.0, 1.3, "oh")]
PHONES = [
    (0, 0.1, ""),
    (0.1, 0.2, "sil"),
    (0.2, 0.3, "HH"),
    (0.3, 0.6, "AH0"),
    (0.6, 0.7, "sp"),
    (0.7, 1.0, "spn"),
    (1.0, 1.2, "OW1"),
    (1.2, 1.3, ""),
]
TIERS = {"words": WORDS, "phones": PHONES}


def long_form(tiers) -> str:
    end = next(iter(tiers.values()))[-1][1]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 "]
    lines += [f"xmax = {end} ", "tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, entries) in enumerate(tiers.items(), start=1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ']
        lines += [f'        name = "{name}" ', "        xmin = 0 ", f"        xmax = {end} "]
        lines += [f"        intervals: size = {len(entries)} "]
        for index, (start, stop, label) in enumerate(entries, start=1):
            lines += [f"        intervals [{index}]:", f"            xmin = {start} "]
            lines += [f"            xmax = {stop} ", f'            text = "{label}" ']
    return "\n".join(lines) + "\n"


def short_form(tiers) -> str:
    end = next(iter(tiers.values()))[-1][1]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(end), "<exists>"]
    lines += [str(len(tiers))]
    for name, entries in tiers.items():
        lines += ['"IntervalTier"', f'"{name}"', "0", str(end), str(len(entries))]
        for start, stop, label in entries:
            lines += [str(start), str(stop), f'"{label}"']
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", [long_form, short_form])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_every_form_gives_the_same(tmp_path, form, encoding):
    path = tmp_path / "a.TextGrid"
    path.write_text(form(TIERS), encoding=encoding)
    found = read_textgrid(path)
    # Neighbouring pauses are one token; spn stays.
    assert found.phones == ("sil", "HH", "AH0", "sil", "spn", "OW1", "sil")
    np.testing.assert_allclose(found.boundaries, [0, 0.2, 0.3, 0.6, 0.7, 1.0, 1.2, 1.3])
    # A word with spn in it has no pronunciation to learn; pauses belong to none.
    assert found.pronunciations == (("hello", "HH AH0"), ("oh", "OW1"))


def test_what_no_interval_covers_is_a_pause(tmp_path):
    """Else it would lengthen the phoneme before, or after at the front."""
    path = tmp_path / "a.TextGrid"
    spoken = [entry for entry in PHONES if entry[2] not in ("", "sil", "sp")]
    for form in (long_form, short_form):
        path.write_text(form({"words": WORDS, "phones": spoken}))
        found = read_textgrid(path)
        assert found.phones == ("sil", "HH", "AH0", "sil", "spn", "OW1", "sil")
        np.testing.assert_allclose(found.boundaries, [0, 0.2, 0.3, 0.6, 0.7, 1.0, 1.2, 1.3])
        assert found.pronunciations == (("hello", "HH AH0"), ("oh", "OW1"))
    # Half of a pause, and a gap within a word.
    odd = [(0.1, 0.2, "sil"), (0.2, 0.3, "HH"), (0.4, 0.6, "AH0"), (0.6, 1.3, "")]
    path.write_text(long_form({"words": WORDS, "phones": odd}))
    found = read_textgrid(path)
    assert found.phones == ("sil", "HH", "sil", "AH0", "sil")
    np.testing.assert_allclose(found.boundaries, [0, 0.2, 0.3, 0.4, 0.6, 1.3])
    assert found.pronunciations == (("hello", "HH AH0"),)
    # What rounding leaves is none.
    close = [(0.0004, 0.2, "HH"), (0.2004, 0.6, "AH0"), (0.6, 1.2996, "OW1")]
    path.write_text(long_form({"words": WORDS, "phones": close}))
    found = read_textgrid(path)
    assert found.phones == ("HH", "AH0", "OW1")
    np.testing.assert_allclose(found.boundaries, [0, 0.2004, 0.6, 1.2996])


def test_a_speaker_in_the_tier_name_and_no_words(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text(long_form({"LJSpeech - phones": PHONES}))
    found = read_textgrid(path)
    assert len(found.phones) == 7 and found.pronunciations == ()


def test_nothing_is_printed_about_last_digits(tmp_path, capsys):
    path = tmp_path / "a.TextGrid"
    path.write_text(long_form(TIERS).replace("xmax = 1.3", "xmax = 1.2999999999999998", 2))
    read_textgrid(path)
    assert capsys.readouterr() == ("", "")


def test_ipa_labels_survive(tmp_path):
    path = tmp_path / "a.TextGrid"
    path.write_text(short_form({"phones": [(0, 0.5, "dʒ"), (0.5, 1.0, "aɪ̯")]}), encoding="utf-16")
    assert read_textgrid(path).phones == ("dʒ", "aɪ̯")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such TextGrid"),
        (b"", "cannot be read as a TextGrid|no interval tier"),
        (b"\x00\x01\x02 nonsense \xff\xfe" * 20, "cannot be read as a TextGrid|no interval tier"),
        (long_form(TIERS)[:500].encode(), "cannot be read as a TextGrid|no interval tier"),
        (long_form({"words": WORDS}).encode(), r"no interval tier named phones \(its tiers: words"),
        (long_form({"phones": [(0, 0.5, ""), (0.5, 1, "spn")]}).encode(), "no known phoneme"),
        (long_form({"phones": [(0, "5e-1", "a"), ("5e-1", 1, "b")]}).encode(), "as 0.2 is"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, content, message):
    path = tmp_path / "a.TextGrid"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UtteranceError, match=message) as caught:
        read_textgrid(path)
    assert "\n" not in str(caught.value) and "a.TextGrid" in str(caught.value)


def test_every_line_of_alignments_is_used_or_named(tmp_path):
    good = {
        "id": "a",
        "phones": ["h", "."],
        "starts": [0, 441],
        "samples": 882,
        "sample_rate": 44100,
    }
    bad = [
        ("{not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (json.dumps({**good, "id": "few", "starts": [0]}), "few: 1 starts for 2 phones"),
        (json.dumps({**good, "id": "back", "starts": [0, 900]}), "back: its starts do not rise"),
        (json.dumps({**good, "id": "late", "starts": [5, 441]}), "late: its starts do not rise"),
        (json.dumps([1, 2]), "expected an object, got list"),
        (json.dumps({"id": "bare"}), "it lacks phones, sample_rate, samples, starts"),
        (json.dumps(good), "the id a came before"),
        (json.dumps({**good, "id": "/etc/a"}), "the id '/etc/a' is a path that leaves the corpus"),
        (json.dumps({**good, "id": "../a"}), "leaves the corpus"),
        (json.dumps({**good, "id": "a\0b"}), r"the id 'a.x00b' holds a NUL"),
        (json.dumps({**good, "id": 3}), "the id 3 is no text"),
        (json.dumps({**good, "id": ["a"]}), "is no text"),
        (json.dumps({**good, "id": ""}), "the id is empty"),
        (json.dumps({**good, "id": "b", "phones": []}), "b: expected a list of text"),
        (json.dumps({**good, "id": "b", "phones": "h."}), "b: expected a list of text"),
        (json.dumps({**good, "id": "b", "phones": ["h", 3]}), "b: expected a list of text"),
        (json.dumps({**good, "id": "b", "sample_rate": 0}), "b: expected numbers"),
        (json.dumps({**good, "id": "b", "sample_rate": float("nan")}), "b: expected numbers"),
        (json.dumps({**good, "id": "b", "starts": [0, float("nan")]}), "b: expected numbers"),
        (json.dumps({**good, "id": "b", "samples": "882"}), "b: expected numbers"),
        (json.dumps({**good, "id": "b", "samples": 10**400}), "b: expected numbers"),
        (json.dumps({**good, "id": "b", "starts": {"0": 1}}), "b: expected numbers|b: -1 starts"),
    ]
    path = tmp_path / "alignments.jsonl"
    path.write_text("\n".join([json.dumps(good), "", *(line for line, _ in bad)]) + "\n")
    found, problems = read_alignments(path)
    assert list(found) == ["a"]
    np.testing.assert_allclose(found["a"].boundaries, [0, 0.01, 0.02])
    assert len(problems) == len(bad)
    for number, ((where, reason), (_, said)) in enumerate(zip(problems, bad, strict=True), 3):
        assert where == f"alignments.jsonl:{number}" and re.search(said, reason), reason
        assert "\n" not in reason and len(reason) < 200


def test_capital_spn_is_spn_and_an_empty_tier_says_so(tmp_path):
    path = tmp_path / "a.TextGrid"
    phones = [(start, end, label.upper()) for start, end, label in PHONES]
    path.write_text(long_form({"words": WORDS, "phones": phones}))
    found = read_textgrid(path)
    assert found.phones == ("sil", "HH", "AH0", "sil", "spn", "OW1", "sil")
    assert found.pronunciations == (("hello", "HH AH0"), ("oh", "OW1"))
    path.write_text(long_form({"words": WORDS, "phones": []}))
    with pytest.raises(UtteranceError, match="its phones tier is empty"):
        read_textgrid(path)


def test_whose_phonemes_a_folder_of_textgrids_has(tmp_path):
    folder, settings = tmp_path / "TextGrid", tmp_path / "align.json"
    folder.mkdir()
    assert phonemes_of(folder) == (None, False)
    learned = {"align": "learned", "language": "de", "phones": "espeak"}
    for data, found in (
        (learned, ("de", False)),
        ({**learned, "phones": "characters"}, ("de", True)),
        ({"align": "english", "language": "en-us"}, (None, False)),
        (["another program's"], (None, False)),
    ):
        settings.write_text(json.dumps(data))
        assert phonemes_of(folder) == found
    settings.write_text(json.dumps(learned))
    assert phonemes_of(folder, "de", "espeak") == ("de", False)
    with pytest.raises(SpeechError, match="--phones: expected 'espeak', .*, got 'characters'"):
        phonemes_of(folder, None, "characters")
    for broken in ("{", '{"align": "learned"}'):
        settings.write_text(broken)
        with pytest.raises(SpeechError, match="align.json cannot be read .*remove it, or align"):
            phonemes_of(folder)


def test_whose_phonemes_the_textgrids_of_another_program_have(tmp_path):
    """What the user says; English in any notation stays what its phones say themselves."""
    for said, found in (
        (("de", None), ("de", False)),
        (("de", "characters"), ("de", True)),
        ((None, "characters"), ("en-us", True)),
        (("en-gb", None), (None, False)),
        (("en-gb", "espeak"), ("en-gb", False)),
    ):
        assert phonemes_of(tmp_path / "TextGrid", *said) == found
    with pytest.raises(SpeechError, match="phones: expected one of espeak, characters, got 'ipa'"):
        phonemes_of(tmp_path / "TextGrid", None, "ipa")


def test_a_frame_between_two_intervals_is_no_pause(tmp_path):
    """As of aligners whose intervals end one frame before the next one begins."""
    path = tmp_path / "a.TextGrid"
    phones = [(0.0, 0.19, "HH"), (0.2, 0.39, "AY1"), (0.6, 0.79, "T")]
    path.write_text(long_form({"phones": phones}))
    found = read_textgrid(path)
    assert found.phones == ("HH", "AY1", "sil", "T")
    assert found.boundaries.tolist() == [0.0, 0.2, 0.39, 0.6, 0.79]
