# SPDX-License-Identifier: Apache-2.0
"""The demo corpus: sentences of our own grammar, spoken by espeak-ng. Synthetic, and called so."""

import io
import json
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sniper.tts.corpus.corpus import ALIGNMENTS, DESCRIPTION
from sniper.tts.errors import SpeechError, progress_bar, require
from sniper.tts.files import CHECKSUMS, atomic_write, damaged_file, sealed, write_json
from sniper.tts.processes import run_in_fresh_process
from sniper.tts.text.espeak import SAMPLE_RATE, espeak
from sniper.tts.text.grammar import demo_sentences

# Rms of the noise under the speech, in steps of 16-bit audio (about -70 dB). The synthesizer's
# pauses are digital silence, ten orders of magnitude below speech, which no recording has:
# normalised over the corpus, the spectra of speech would be squeezed into a sliver beside them.
ROOM_TONE_RMS = 10.0


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
        "room_tone_rms": ROOM_TONE_RMS,
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
    write_json(marker, sealed(description, DESCRIPTION, root, _spoken(root)))


def _is_finished(marker: Path, description: dict) -> bool:
    """Whether what is described lies there as it was written; an older one has no checksums."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        if {k: v for k, v in found.items() if k != CHECKSUMS} != description:
            return False
        beside = [name for name in found.get(CHECKSUMS, ()) if name != DESCRIPTION]
        return damaged_file(found, marker.parent, beside) is None
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _spoken(root: Path) -> list[str]:
    wavs = sorted((root / "wavs").glob("demo-*.wav"))
    return ["metadata.csv", ALIGNMENTS, *(f"wavs/{wav.name}" for wav in wavs)]


def _with_room_tone(audio: np.ndarray, number: int) -> np.ndarray:
    """`audio` int16 `[n]` with faint white noise that depends on the sentence's number alone."""
    noise = np.random.RandomState(number).normal(0, ROOM_TONE_RMS, len(audio))
    loud = audio.astype(np.float64) + noise
    return np.clip(np.round(loud), -32768, 32767).astype(np.int16)


def _speak(root: Path, sentences: list[str], voice: str, progress: bool) -> None:
    # tqdm's own lock is a semaphore that a terminated process would leave behind.
    require("tqdm").tqdm.set_lock(threading.RLock())
    engine = espeak()
    soundfile = require("soundfile")
    metadata, alignments = [], []
    bar = progress_bar(sentences, "speaking", len(sentences), show=progress)
    for number, sentence in enumerate(bar, start=1):
        name = f"demo-{number:05d}"
        try:
            speech = engine.synthesize(sentence, voice)
        except SpeechError:
            raise
        except Exception as error:  # whose it is would be lost on the way to the parent
            raise SpeechError(f"{name}: unexpected {type(error).__name__}: {error}") from error
        path = root / "wavs" / f"{name}.wav"
        sound = io.BytesIO()  # the sound library would not say that the disk is full
        noisy = _with_room_tone(speech.audio, number)
        soundfile.write(sound, noisy, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        with atomic_write(path) as file:
            file.write(sound.getvalue())
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
