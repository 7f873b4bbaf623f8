# SPDX-License-Identifier: Apache-2.0
"""From text to sound with a trained model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from sniper.tts.audio.vocoder import GriffinLim, Vocoder
from sniper.tts.audio.writing import gain_of, limit_peak, peak_of
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.errors import SpeechError
from sniper.tts.files import composed
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.text.new_words import Added, Guess, add_words
from sniper.tts.text.ssml import Utterance, ssml_utterances
from sniper.tts.text.text import (
    Frontend,
    LexiconFrontend,
    UnknownWords,
    known_marks,
    read_all,
    split_sentences,
    text_to_phones,
)

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
        guessed: words that the lexicon does not hold, with the phonemes that they were given.
    """

    audio: np.ndarray
    mel: np.ndarray
    phones: list[list[str]]
    durations: list[np.ndarray]
    gain: float = 1.0
    guessed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """One sentence that was spoken, or a break.

    Args:
        audio: `[n]` float32, the pause in front of it included; its peak may be above 1.
        mel: `[T, n_mels]` float32, as of `Speech`; `[0, n_mels]` of a break.
        phones: its tokens; none of a break.
        durations: frames of each token and of the end of the sentence.
    """

    audio: np.ndarray
    mel: np.ndarray
    phones: list[str]
    durations: np.ndarray


@dataclass(frozen=True)
class Script:
    """A text that was read, with who is to speak it and how.

    Args:
        utterances: sentences, or parts of them, and breaks.
        speaker: a name of the model's; None for a model of one.
        speed, pitch, energy: as `Speaker.read` takes them.
        guessed: words that the lexicon does not hold, with the phonemes that they were given.
    """

    utterances: tuple[Utterance, ...]
    speaker: str | None
    speed: float
    pitch: float
    energy: float
    guessed: dict[str, str]


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
        """Speaks a text, sentence by sentence with a short pause between; all of it is in memory.

        Args:
            text, speed, pitch, energy, ssml, speaker: as `read` takes them.
            vocode, watch: as `say` takes them.

        Raises:
            SpeechError: see `read` and `say`.
        """
        script = self.read(
            text, speed=speed, pitch=pitch, energy=energy, ssml=ssml, speaker=speaker
        )
        pieces = list(self.say(script, vocode=vocode, watch=watch))
        whole = np.concatenate([piece.audio for piece in pieces])
        spoken = [piece for piece in pieces if piece.phones]
        return Speech(
            # One gain for all of it, or sentences would differ in loudness.
            audio=limit_peak(whole),
            mel=np.concatenate([piece.mel for piece in pieces]),
            phones=[piece.phones for piece in spoken],
            durations=[piece.durations for piece in spoken],
            gain=gain_of(peak_of(whole)),
            guessed=script.guessed,
        )

    def read(
        self,
        text: str,
        *,
        speed: float = 1.0,
        pitch: float = 0.0,
        energy: float = 1.0,
        ssml: bool = False,
        speaker: str | None = None,
    ) -> Script:
        """What is to be said for a text of any length, for `say`.

        Args:
            text: or phonemes in braces.
            speed: 2 takes half as long; from 0.1 to 10.
            pitch: semitones up (down when negative).
            energy: factor on the loudness that the model is asked for; at most 10.
            ssml: the text is an SSML document; its rates and pitches go on top of these, and its
                breaks are in the audio alone, as the pauses between sentences are.
            speaker: a name of `info.speakers`; None: the first, where there are several.

        Raises:
            SpeechError: a speaker that the model does not have, a word or sign that cannot be read,
                no known phoneme, a control out of range, or SSML that cannot be followed.
        """
        _check_controls(speed, pitch, energy)
        who = self.who(speaker)
        utterances, guessed = self._utterances(text, ssml)
        utterances = self._with_known_marks(utterances)
        if not any(utterance.phones for utterance in utterances):
            raise SpeechError(f"no known phoneme in the text {text!r}")
        for utterance in utterances:
            # All of them first: a book is not to fail in its last chapter.
            _check_controls(speed * utterance.rate, pitch + utterance.pitch, energy)
            if utterance.phones:
                self.info.vocabulary.encode(utterance.phones)
        return Script(tuple(utterances), who, speed, pitch, energy, guessed)

    def say(
        self,
        script: Script,
        *,
        vocode: bool = True,
        watch: Callable[[int, int], None] | None = None,
    ) -> Iterator[Piece]:
        """Speaks what was read, one sentence after the other: memory holds one, whatever the length
        of the text. Nobody has limited their loudness; `gain_of` their peak is for all of them.

        Args:
            vocode: False leaves `audio` empty, for an external vocoder.
            watch: is told after each step how many are done, and of how many.

        Raises:
            SpeechError: weights that give no sound.
        """
        steps = sum(bool(u.phones) for u in script.utterances) * (2 if vocode else 1)
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if watch is not None:
                watch(done, steps)

        for number, u in enumerate(script.utterances):
            # Made in a call, so that this frame keeps none of it while the next is made.
            yield self._piece(script, u, number == 0, vocode, step)

    def _piece(
        self, script: Script, u: Utterance, first: bool, vocode: bool, step: Callable[[], None]
    ) -> Piece:
        mel = np.zeros((0, self.info.features.n_mels), dtype=np.float32)
        audio, durations = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
        if u.phones:
            controls = (script.speed * u.rate, script.pitch + u.pitch, script.energy)
            mel, durations = self._mel(list(u.phones), script.speaker, *controls)
            step()
            if not np.isfinite(mel).all():
                raise SpeechError("the model gives no finite sound: its weights are broken")
        if vocode:
            pause = (0.0 if first else PAUSE_SECONDS) if u.pause is None else u.pause
            silence = round(pause * self.info.features.sample_rate)
            sound = [np.zeros(silence, dtype=np.float32)]
            if u.phones:
                sound.append(self.vocoder(mel))
                step()
            audio = np.concatenate(sound)
        return Piece(audio, mel, list(u.phones), durations)

    def _utterances(self, text: str, ssml: bool) -> tuple[list[Utterance], dict[str, str]]:
        """What a text says, and the phonemes of its words that the lexicon does not hold."""
        frontend, read = self.info.frontend, ssml_utterances if ssml else _sentences
        if not isinstance(frontend, LexiconFrontend):
            return read(text, frontend), {}
        guess = Guess(frontend, self.info.vocabulary)
        try:
            return read(text, frontend.guessing(guess)), guess.read
        except UnknownWords as error:
            raise UnknownWords(error.words, guess.lacking) from None

    def _with_known_marks(self, utterances: list[Utterance]) -> list[Utterance]:
        """The same with the pauses that the voice has; of others it is warned."""
        found, missing = [], set()
        for utterance in utterances:
            phones, left_out = known_marks(
                utterance.phones, self.info.vocabulary, self.info.frontend
            )
            found.append(replace(utterance, phones=tuple(phones)))
            missing.update(left_out)
        if missing:
            warnings.warn(
                "the voice has no pauses, since its recordings have none: left out: "
                f"{' '.join(sorted(missing))}",
                stacklevel=3,
            )
        return found

    def add_words(self, words: dict[str, str]) -> Added:
        """Adds a dictionary's words (phonemes separated by spaces), which go before its own.

        Raises:
            SpeechError: a voice that espeak-ng reads, or not one of the words can be spoken.
        """
        frontend, added = add_words(self.info.frontend, words, self.info.vocabulary)
        self.info = replace(self.info, frontend=frontend)
        return added

    def how_guessed(self, guessed: dict[str, str]) -> str:
        """One line on words that the lexicon does not hold, see `Script`."""
        read = ", ".join(f"{word} {{{phones}}}" for word, phones in guessed.items())
        letters = getattr(self.info.frontend, "characters", False)
        return f"in no lexicon, read by {'their letters' if letters else 'espeak-ng'}: {read}"

    def who(self, speaker: str | None = None) -> str | None:
        """The name of who speaks where `speaker` is asked for; None for a model of one.

        Raises:
            SpeechError: there is no such speaker.
        """
        names = list(self.info.speakers)
        if speaker is None:
            return names[0] if names else None
        if speaker not in names:
            spelled = {composed(name): name for name in names}
            if found := spelled.get(composed(speaker)):
                return found
            near = get_close_matches(speaker, names, n=5) or names[:5]
            of = "" if len(near) == len(names) else f" among its {len(names)}"
            others = f"{', '.join(near)}{of}" if names else "none with a name"
            raise SpeechError(f"speaker: the model has no {speaker!r}, but {others}")
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
    spoken = read_all(split_sentences(text), lambda sentence: text_to_phones(sentence, frontend))
    return [Utterance(tuple(phones)) for phones in spoken]


def _check_controls(speed: float, pitch: float, energy: float) -> None:
    # Asked this way round, so that NaN is refused as well.
    if not 0.1 <= speed <= 10:
        raise SpeechError(f"speed: expected a number from 0.1 to 10, got {speed}")
    if not 0 < energy <= 10:
        raise SpeechError(f"energy: expected a number above 0, at most 10, got {energy}")
    if not abs(pitch) <= 48:
        raise SpeechError(f"pitch: expected semitones within +-48, got {pitch}")
