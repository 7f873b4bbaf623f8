# SPDX-License-Identifier: Apache-2.0
"""Whether the recordings and alignments of a finished preparation are still those it was made from.

Files that changed later would otherwise be trained on as they were, and nobody would know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sniper.tts.corpus.alignment import Alignment
from sniper.tts.corpus.corpus import Corpus, Utterance
from sniper.tts.errors import SpeechError
from sniper.tts.files import checksum, checksum_of_bytes

_MISSING = "missing"
_SHOWN = 5


def state_of(utterance: Utterance) -> str:
    """Size and time of change of each of an utterance's files: equal, they count as unchanged."""
    return " ".join(_size_and_time(part) for part in _parts(utterance))


def content_of(utterance: Utterance) -> str:
    """Checksums of an utterance's files, for where the times say nothing: a corpus that was copied,
    or files that were written again as they were.
    """
    return " ".join(_content(part) for part in _parts(utterance))


def entry_of(state: str, content: str) -> str:
    """What `refuse_other_sources` takes of one utterance: in one line, as there are thousands."""
    return f"{state} = {content}"


def refuse_other_sources(out: Path, there: Any, corpus: Corpus, moved: str = "") -> None:
    """Compare what a preparation was made from with what lies there now.

    Args:
        out: its folder, for the message.
        there: `entry_of` each utterance by its id; None from earlier versions, which is taken on
            trust.
        corpus: as it is read now.
        moved: where it lay and lies now, if that is elsewhere: there sizes and times say nothing.

    Raises:
        SpeechError: utterances have changed, come or gone; names some of each.
        ValueError, AttributeError: `there` is something else.
    """
    if there is None:
        return
    known = {name: tuple(entry.split(" = ")) for name, entry in there.items()}
    if not all(len(entry) == 2 for entry in known.values()):
        raise ValueError("sources are not pairs of state and content")
    changes = {"changed": [], "new": [], "gone": []}
    for utterance in corpus.utterances:
        found = known.pop(utterance.id, None)
        if found is None:
            changes["new"].append(utterance.id)
        elif (moved or state_of(utterance) != found[0]) and content_of(utterance) != found[1]:
            changes["changed"].append(utterance.id)
    changes["gone"] = list(known)
    if any(changes.values()):
        found = [_list(names, what) for what, names in changes.items() if names]
        listed = "; ".join([*found, moved] if moved else found)
        raise SpeechError(
            f"{out} was prepared from other recordings or alignments: {listed}. Choose another "
            "--out, or make it anew with --force"
        )


def _list(names: list[str], what: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"


def _parts(utterance: Utterance) -> tuple[Path, Alignment | Path]:
    return utterance.wav, utterance.alignment


def _size_and_time(part: Alignment | Path) -> str:
    if isinstance(part, Alignment):
        return _content(part)  # a line of a file that is read anyway
    try:
        found = part.stat()
    except OSError:
        return _MISSING
    return f"{found.st_size}:{found.st_mtime_ns}"


def _content(part: Alignment | Path) -> str:
    if isinstance(part, Alignment):
        return checksum_of_bytes(repr(part.phones).encode() + part.boundaries.tobytes())
    try:
        # No device or pipe, which might never end.
        return checksum(part) if part.is_file() else _MISSING
    except OSError:
        return _MISSING
