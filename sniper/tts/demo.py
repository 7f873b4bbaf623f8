# SPDX-License-Identifier: Apache-2.0
"""The demo corpus: sentences of our own grammar, spoken by espeak-ng. Synthetic, and called so."""

import json
import threading
from importlib.metadata import version
from pathlib import Path

from sniper.tts.corpus import ALIGNMENTS, DESCRIPTION
from sniper.tts.errors import progress_bar, require
from sniper.tts.espeak import SAMPLE_RATE, espeak
from sniper.tts.grammar import demo_sentences
from sniper.tts.processes import run_in_fresh_process
from sniper.tts.store import atomic_write, write_json


def write_demo_corpus(
    root: Path, utterances: int, seed: int, voice: str, progress: bool = True
) -> None:
    """Speak a corpus in LJSpeech's layout, with alignments.jsonl.

    Equal arguments give equal bytes. A folder that was finished with these arguments is left as it
    is; anything else in these files is written anew.

    Raises:
        SpeechError: espeak-ng or another package is missing, or it has no such voice.
        ValueError: a number of sentences out of range.
    """
    for module in ("espeakng_loader", "soundfile", "tqdm"):
        require(module)
    description = {
        "kind": "synthetic speech: a formant synthesizer read sentences of a small grammar",
        "synthesizer": "espeak-ng",
        "espeakng_loader": version("espeakng_loader"),
        "voice": voice,
        "utterances": utterances,
        "seed": seed,
    }
    marker = root / DESCRIPTION
    if _is_finished(marker, description):
        return
    sentences = demo_sentences(utterances, seed)
    (root / "wavs").mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for stale in (root / "wavs").glob("demo-*.wav"):
        stale.unlink()
    # espeak-ng's oscillators run on from call to call: only a fresh process that speaks the same
    # sentences in the same order gives the same bytes.
    run_in_fresh_process(_speak, root, sentences, voice, progress)
    # Last of all: it says that the rest is complete.
    write_json(marker, description)


def _is_finished(marker: Path, description: dict) -> bool:
    try:
        return json.loads(marker.read_text()) == description
    except (OSError, ValueError):
        return False


def _speak(root: Path, sentences: list[str], voice: str, progress: bool) -> None:
    # tqdm's own lock is a semaphore that a terminated process would leave behind.
    require("tqdm").tqdm.set_lock(threading.RLock())
    engine = espeak()
    soundfile = require("soundfile")
    metadata, alignments = [], []
    bar = progress_bar(sentences, "speaking", len(sentences), show=progress)
    for number, sentence in enumerate(bar, start=1):
        name = f"demo-{number:05d}"
        speech = engine.synthesize(sentence, voice)
        path = root / "wavs" / f"{name}.wav"
        soundfile.write(path, speech.audio, SAMPLE_RATE, subtype="PCM_16")
        metadata.append(f"{name}|{sentence}|{sentence}\n")
        entry = {
            "id": name,
            "phones": speech.phones,
            "starts": speech.starts,
            "samples": len(speech.audio),
            "sample_rate": SAMPLE_RATE,
        }
        alignments.append(json.dumps(entry, ensure_ascii=False) + "\n")
    for name, lines in (("metadata.csv", metadata), (ALIGNMENTS, alignments)):
        with atomic_write(root / name) as file:
            file.write("".join(lines).encode())
