# SPDX-License-Identifier: Apache-2.0
"""From text to sound with a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from sniper.tts.audio.vocoder import GriffinLim, Vocoder
from sniper.tts.audio.writing import limit_peak, peak_of
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.errors import SpeechError
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.text.ssml import Utterance, ssml_utterances
from sniper.tts.text.text import Frontend, split_sentences, text_to_phones

PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Speech:
    """What was spoken.

    Args:
        audio: `[n]` float32 in [-1, 1] at `info.features.sample_rate`.
        mel: `[T, n_mels]` float32, log-mel as the features have it (not normalised).
        phones: tokens of each sentence.
        durations: frames of each token of each sentence.
        gain: what all of the audio was multiplied with, below 1 where its peak was above 1.
    """

    audio: np.ndarray
    mel: np.ndarray
    phones: list[list[str]]
    durations: list[np.ndarray]
    gain: float = 1.0


class Speaker:
    """Speaks with a model and the corpus information that it was trained with.

    Args:
        model: put into evaluation mode.
        info: vocabulary, text frontend, features, statistics.
        vocoder: makes sound of the model's mels; None: Griffin-Lim.
    """

    def __init__(self, model: FastSpeech2, info: CorpusInfo, vocoder: Vocoder | None = None):
        self.model = model.eval()
        self.info = info
        self.vocoder = vocoder or GriffinLim(info.features)

    def speak(
        self,
        text: str,
        *,
        speed: float = 1.0,
        pitch: float = 0.0,
        energy: float = 1.0,
        vocode: bool = True,
        ssml: bool = False,
        speaker: str | None = None,
        watch: Callable[[int, int], None] | None = None,
    ) -> Speech:
        """Speaks a text of any length, sentence by sentence with a short pause between.

        Args:
            text: or phonemes in braces.
            speed: 2 takes half as long; from 0.1 to 10.
            pitch: semitones up (down when negative).
            energy: factor on the loudness that the model is asked for; at most 10.
            vocode: False leaves `audio` empty, for an external vocoder.
            ssml: the text is an SSML document; its rates and pitches go on top of these, and its
                breaks are in `audio` alone, as the pauses between sentences are.
            speaker: a name of `info.speakers`; None: the first, where there are several.
            watch: is told after each sentence how many steps are done, and of how many.

        Raises:
            SpeechError: a speaker that the model does not have, no known phoneme, a control out of
                range, SSML that cannot be followed, or weights that give no sound.
        """
        _check_controls(speed, pitch, energy)
        who = self.who(speaker)
        read = ssml_utterances if ssml else _sentences
        utterances = read(text, self.info.frontend)
        if not any(utterance.phones for utterance in utterances):
            raise SpeechError(f"no known phoneme in the text {text!r}")
        for utterance in utterances:
            # All of them first: a book is not to fail in its last chapter.
            _check_controls(speed * utterance.rate, pitch + utterance.pitch, energy)
        voiced = [utterance for utterance in utterances if utterance.phones]
        done, steps = 0, len(voiced) * (2 if vocode else 1)

        def step() -> None:
            nonlocal done
            done += 1
            if watch is not None:
                watch(done, steps)

        spoken = []
        for u in voiced:
            controls = (speed * u.rate, pitch + u.pitch, energy)
            spoken.append(self._mel(list(u.phones), who, *controls))
            step()
        if not all(np.isfinite(mel).all() for mel, _ in spoken):
            raise SpeechError("the model gives no finite sound: its weights are broken")
        audio = self._audio(utterances, [mel for mel, _ in spoken], step) if vocode else []
        whole = np.concatenate(audio) if audio else np.zeros(0, dtype=np.float32)
        return Speech(
            # One gain for all of it, or sentences would differ in loudness.
            audio=limit_peak(whole),
            mel=np.concatenate([mel for mel, _ in spoken]),
            phones=[list(utterance.phones) for utterance in voiced],
            durations=[durations for _, durations in spoken],
            gain=1 / max(1.0, peak_of(whole)),
        )

    def _audio(
        self, utterances: list[Utterance], mels: list[np.ndarray], step: Callable[[], None]
    ) -> list[np.ndarray]:
        """Sound and silence in turn; `step` is called after each sentence."""
        features = self.info.features
        audio: list[np.ndarray] = []
        remaining = iter(mels)
        for utterance in utterances:
            pause = utterance.pause
            if pause is None:
                pause = PAUSE_SECONDS if audio else 0.0
            if pause:
                audio.append(np.zeros(round(pause * features.sample_rate), dtype=np.float32))
            if utterance.phones:
                audio.append(self.vocoder(next(remaining)))
                step()
        return audio

    def who(self, speaker: str | None = None) -> str | None:
        """The name of who speaks where `speaker` is asked for; None for a model of one.

        Raises:
            SpeechError: there is no such speaker.
        """
        names = list(self.info.speakers)
        if speaker is None:
            return names[0] if names else None
        if speaker not in names:
            near = get_close_matches(speaker, names, n=5) or names[:5]
            some = f"some of its {len(names)}: {', '.join(near)}" if names else "none with a name"
            raise SpeechError(f"speaker: the model has no {speaker!r}, but {some}")
        return speaker

    def number(self, speaker: str | None) -> Tensor | None:
        """A speaker as the model takes it, int64 `[1]`; None for a model of one."""
        if speaker is None:
            return None
        device = next(self.model.parameters()).device
        return torch.tensor([list(self.info.speakers).index(speaker)], device=device)

    def _mel(
        self, phones: list[str], who: str | None, speed: float, pitch: float, energy: float
    ) -> tuple[np.ndarray, np.ndarray]:
        statistics = self.info.statistics_of(who)
        device = next(self.model.parameters()).device
        tokens = torch.from_numpy(self.info.vocabulary.encode(phones))[None].to(device)
        try:
            out = self.model.infer(
                tokens,
                speakers=self.number(who),
                speed=speed,
                # The model's pitch is log-F0 over the corpus' standard deviation.
                pitch_shift=pitch * math.log(2) / 12 / statistics.pitch_std,
                energy_scale=energy,
                # The model's energy is (e - mean) / std, and here e is multiplied, not its distance
                # from the mean.
                energy_shift=(energy - 1) * statistics.energy_mean / statistics.energy_std,
            )
        except ValueError as error:  # NaN durations
            raise SpeechError(f"the model cannot speak: {error}") from error
        mel = statistics.denormalize_mel(out.mel[0].float().cpu().numpy())
        return mel.astype(np.float32), out.durations[0].cpu().numpy()


def _sentences(text: str, frontend: Frontend) -> list[Utterance]:
    return [
        Utterance(tuple(text_to_phones(sentence, frontend))) for sentence in split_sentences(text)
    ]


def _check_controls(speed: float, pitch: float, energy: float) -> None:
    # Asked this way round, so that NaN is refused as well.
    if not 0.1 <= speed <= 10:
        raise SpeechError(f"speed: expected a number from 0.1 to 10, got {speed}")
    if not 0 < energy <= 10:
        raise SpeechError(f"energy: expected a number above 0, at most 10, got {energy}")
    if not abs(pitch) <= 48:
        raise SpeechError(f"pitch: expected semitones within +-48, got {pitch}")
