# SPDX-License-Identifier: Apache-2.0
"""Analyse utterances one by one in several processes, in order, each to a `Record`."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.reading import read_sound, sound_seconds
from sniper.tts.corpus.alignment import Alignment, read_textgrid
from sniper.tts.corpus.corpus import Utterance
from sniper.tts.corpus.features import extract
from sniper.tts.corpus.sources import content_of
from sniper.tts.corpus.workfile import Record
from sniper.tts.errors import UtteranceError
from sniper.tts.processes import map_in_processes
from sniper.tts.text.text import is_phoneme

# An aligner's clock and the file's may disagree a little; beyond this they are not the same audio.
MAX_MISMATCH_FRAMES = 4
# Nobody speaks a phoneme for so long; an aligner that has lost its place writes such ones.
MAX_PHONE_SECONDS = 5.0

# Two steps of 16 bits: what is left where two channels cancel, or of a muted microphone.
SILENCE = 2**-14


def analyze(utterance: Utterance, config: FeatureConfig) -> Record:
    """Read, align and analyse one utterance; what is wrong with it becomes `Record.problem`."""
    # Before the files are read, so that one which changes meanwhile is another at the next look.
    content = content_of(utterance)
    return replace(_analyze(utterance, config), content=content)


def _analyze(utterance: Utterance, config: FeatureConfig) -> Record:
    try:
        alignment = utterance.alignment
        if not isinstance(alignment, Alignment):
            alignment = read_textgrid(alignment)
        # Compared before the file is read and resampled: one that does not belong to this alignment
        # may be of any length.
        _refuse_other_length(alignment, sound_seconds(utterance.wav, config), utterance, config)
        sound = read_sound(utterance.wav, config)
        samples, boundaries = sound.samples, alignment.boundaries * config.sample_rate
        if not any(map(is_phoneme, alignment.phones)):
            raise UtteranceError("its alignment holds no known phoneme")
        if np.abs(samples).max() < SILENCE:
            raise UtteranceError(
                f"{utterance.wav} is silent: mixed to one channel, no sample is above {SILENCE:.1g}"
            )
        _refuse_long_phones(alignment)
        features = extract(samples, boundaries, config)
    except (UtteranceError, OSError) as error:
        return Record(utterance.id, utterance.text, problem=" ".join(str(error).split()))
    # Whatever else one file causes must name that file, and not end the work on all others.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"unexpected error in {utterance.wav}: {reason}"
        return Record(utterance.id, utterance.text, problem=problem)
    return Record(
        utterance.id,
        utterance.text,
        phones=alignment.phones,
        pronunciations=alignment.pronunciations,
        features=features,
        sound=(sound.rate, sound.peak, sound.clipped),
    )


def _refuse_other_length(
    alignment: Alignment, seconds: float, utterance: Utterance, config: FeatureConfig
) -> None:
    mismatch = abs(alignment.boundaries[-1] - seconds) * config.sample_rate / config.hop_length
    if mismatch > MAX_MISMATCH_FRAMES:
        raise UtteranceError(
            f"the alignment lasts {alignment.boundaries[-1]:.2f} s but {utterance.wav} "
            f"{seconds:.2f} s"
        )


def _refuse_long_phones(alignment: Alignment) -> None:
    lengths = np.diff(alignment.boundaries)
    for phone, seconds in zip(alignment.phones, lengths, strict=True):
        if seconds > MAX_PHONE_SECONDS and is_phoneme(phone):
            raise UtteranceError(
                f"its alignment gives the phoneme {phone} {seconds:.1f} s, at most "
                f"{MAX_PHONE_SECONDS:g} are believed: align it anew"
            )


def analyze_all(
    utterances: Sequence[Utterance], config: FeatureConfig, workers: int
) -> Iterator[Record]:
    """Analyse in `workers` processes (1: in this one); records come in the order of utterances.

    Raises:
        SpeechError: a worker process was killed.
    """
    if workers <= 1 or len(utterances) < 2:
        for utterance in utterances:
            # One thread, as in a worker process, so that the number of workers changes no bit.
            with _one_thread():
                record = analyze(utterance, config)
            yield record
        return
    # A worker's sums are added with one thread, as those above.
    yield from map_in_processes(
        partial(analyze, config=config), utterances, workers, torch.set_num_threads, 1
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Computes with one thread: sums in another order would give other last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pause_share(records_phones: Sequence[tuple[str, ...]], pause: str) -> tuple[bool, bool]:
    """Whether at least half of the utterances begin, and end, with a pause."""
    if not records_phones:
        return False, False
    first = np.mean([phones[0] == pause for phones in records_phones])
    last = np.mean([phones[-1] == pause for phones in records_phones])
    # By majority: at inference text gets the pauses at its ends that most of the recordings have.
    return bool(first >= 0.5), bool(last >= 0.5)
