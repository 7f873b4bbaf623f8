# SPDX-License-Identifier: Apache-2.0
"""English by pocketsphinx: a first pass finds words and pauses, a second one their phones.

Source: pocketsphinx's `set_align_text` (a chain of the words with optional silences, by Viterbi)
and `set_alignment` (the same over the states of the phones of what was found).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sniper.tts.aligners.pronounce import acoustic_model
from sniper.tts.aligners.textgrid import TimedText, timed_text
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import UtteranceError, require
from sniper.tts.text.arpabet import without_stress

RATE = 16_000
AUDIO = FeatureConfig(sample_rate=RATE)
# A frame stands for the middle of its window, and a border for the middle between two frames.
FRAME_SECONDS, _WINDOW_SECONDS = 0.01, 0.025625
_OFFSET = (_WINDOW_SECONDS - FRAME_SECONDS) / 2
# Scores are whole numbers: logarithms to this base, divided by 2 ** 10.
_NATS = 1024 * math.log(1.0001)
# Beams of the first pass, wider from try to try: the later ones are slow, and seldom needed.
_BEAMS = (
    {},
    {"beam": 1e-120, "pbeam": 1e-120, "wbeam": 1e-80},
    {"beam": 1e-300, "pbeam": 1e-300, "wbeam": 1e-300, "maxhmmpf": -1},
)


class EnglishAligner:
    """Aligns one utterance after the other; one a process.

    Args:
        variants: word -> its pronunciations in ARPAbet, with or without stress, for every word
            that will come.
        folder: for the dictionary file that pocketsphinx reads.
    """

    def __init__(self, variants: dict[str, Sequence[str]], folder: Path) -> None:
        self._model, _ = acoustic_model()
        self._decoders: list = []
        self._names = {word: f"w{index}" for index, word in enumerate(sorted(variants))}
        self._phones: dict[str, list[str]] = {}
        lines = []
        for word, name in self._names.items():
            for number, phones in enumerate(variants[word], start=1):
                # Names of our own: words hold signs that mean something in a dictionary file.
                entry = name if number == 1 else f"{name}({number})"
                self._phones[entry] = phones.split()
                lines.append(f"{entry} {' '.join(without_stress(phones.split()))}\n")
        self._dictionary = folder / "pronunciations.dict"
        self._dictionary.write_text("".join(lines), encoding="utf-8")

    def _decoder(self, attempt: int):
        # Made when needed: a decoder loads the acoustic model, and the wide ones seldom come to
        # run.
        while len(self._decoders) <= attempt:
            sphinx = require("pocketsphinx")
            config = sphinx.Config(
                hmm=str(self._model),
                dict=str(self._dictionary),
                lm=None,
                bestpath=False,
                loglevel="FATAL",
                **_BEAMS[len(self._decoders)],
            )
            self._decoders.append(sphinx.Decoder(config))
        return self._decoders[attempt]

    def align(self, samples: np.ndarray, words: Sequence[str]) -> tuple[TimedText, list[str]]:
        """Align one utterance.

        Args:
            samples: `[n]` in [-1, 1] at 16 kHz.
            words: of its transcript, in order.

        Returns:
            The words in time, and remarks about it.

        Raises:
            UtteranceError: the words do not lead through the audio, with the widest beams either.
        """
        # pocketsphinx takes 16-bit samples alone.
        data = np.round(samples * 32767).astype("<i2").tobytes()
        for attempt in range(len(_BEAMS)):
            found = self._attempt(attempt, data, words)
            if found is not None:
                spoken, score, frames = found
                text = timed_text(spoken, len(samples) / RATE, score * _NATS / frames, frames)
                return text, ["needed wider beams"] if attempt else []
        raise UtteranceError(
            "its words do not lead to the end of its audio, however wide the search: the "
            "transcript says something else, or the recording is cut"
        )

    def _attempt(self, attempt: int, data: bytes, words: Sequence[str]):
        """(word, phones in seconds) in order, the score of the words, their frames; or None."""
        decoder = self._decoder(attempt)
        try:
            decoder.set_align_text(" ".join(self._names[word] for word in words))
            _decode(decoder, data)
            if decoder.hyp() is None:
                return None
            decoder.set_alignment()
            _decode(decoder, data)
            alignment = decoder.get_alignment()
        except RuntimeError:
            return None  # its only way to say that a pass found no way through the audio
        if alignment is None:
            return None
        found, score, frames = [], 0, 0
        # pocketsphinx frees an entry when the loop goes on, so its values are copied at once.
        for entry in alignment:
            name, at = entry.name, [(p.name, p.start, p.start + p.duration) for p in entry]
            if name not in self._phones:
                continue  # silence or noise
            score += entry.score
            frames += entry.duration
            phones = zip(self._phones[name], at, strict=True)
            times = [(p, _seconds(start), _seconds(end)) for p, (_, start, end) in phones]
            found.append((name.split("(")[0], times))
        # A search that gave up early returns the words that it got to.
        if [name for name, _ in found] != [self._names[word] for word in words]:
            return None
        return [(word, at) for word, (_, at) in zip(words, found, strict=True)], score, frames


def _decode(decoder, data: bytes) -> None:
    # A new front end: its estimate of the noise would carry over from the utterance before, and
    # borders would depend on the order, and so on the number of processes.
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()


def _seconds(frame: int) -> float:
    return frame * FRAME_SECONDS + _OFFSET
