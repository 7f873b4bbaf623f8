# SPDX-License-Identifier: Apache-2.0
"""An aligner that is trained on the corpus it aligns: any language, any set of phones."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sniper.tts import audio as analysis
from sniper.tts.aligners.network import (
    AlignerNetwork,
    beta_binomial_prior,
    binarization_loss,
    forward_sum_loss,
    hard_path,
    monotonic_search,
)
from sniper.tts.aligners.textgrid import TimedText, timed_text
from sniper.tts.aligners.tokens import SILENCE, Spoken
from sniper.tts.audio.config import FeatureConfig
from sniper.tts.errors import SpeechError, UtteranceError
from sniper.tts.files import atomic_write
from sniper.tts.processes import held_signals

AUDIO = FeatureConfig()
FRAME_SECONDS = AUDIO.hop_length / AUDIO.sample_rate
STEPS = 1000
# The binarisation loss comes in once the paths have formed, over as many steps again.
_BINARIZE_FROM, _BINARIZE_FULL = 0.4, 0.8
_MAX_BATCH_FRAMES = 5_000
_LEARNING_RATE = 1e-3
_SAVE_EVERY = 100
# What it costs a silence to stand on the loudest frame, in nats, and from which loudness on it
# costs. The network itself takes the vowel of a word that always stands alone for a part of the
# silence behind it.
_LOUD_SILENCE, _QUIET = 20.0, 0.2
_CHECKPOINT_FORMAT = 1


def mel_of(samples: np.ndarray) -> np.ndarray:
    """Log-mel `[T, 80]` float32 of samples at AUDIO's rate."""
    return np.asarray(analysis.log_mel(analysis.spectrum(samples, AUDIO), AUDIO), np.float32)


def loudness(mel: np.ndarray) -> np.ndarray:
    """How loud each frame of a log-mel `[T, n_mels]` is among the others of its recording, `[T]`
    from 0 (quiet) to 1.
    """
    level = mel.mean(1)
    # A twentieth at both ends, so that a click is not the measure.
    low, high = np.percentile(level, [5, 95])
    return np.clip((level - low) / max(high - low, 1e-3), 0, 1)


@dataclass(frozen=True)
class Example:
    """One utterance to train on: its tokens, and the .npy file of its log-mel `[T, n_mels]`."""

    tokens: tuple[str, ...]
    mel: Path
    frames: int


class LearnedAligner:
    """A network with its vocabulary and the statistics of the mels it was trained on.

    Args:
        symbols: tokens; the first has the id 1.
        mean, std: `[n_mels]` of the corpus' log-mel.
    """

    def __init__(self, symbols: Sequence[str], mean: np.ndarray, std: np.ndarray) -> None:
        self.symbols = tuple(symbols)
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        # From 1, since 0 is padding.
        self.ids = {symbol: index for index, symbol in enumerate(self.symbols, start=1)}
        self.network = AlignerNetwork(len(self.symbols) + 1, len(self.mean))

    def batch(self, tokens: Sequence[tuple[str, ...]], mels: Sequence[np.ndarray], device):
        """Padded `[B, K]`, `[B]`, `[B, T, n_mels]`, `[B]` tensors, and the prior `[B, T, K]`."""
        lengths = torch.tensor([len(t) for t in tokens])
        frames = torch.tensor([len(m) for m in mels])
        ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.int64)
        mel = torch.zeros(len(mels), int(frames.max()), len(self.mean))
        prior = torch.zeros(len(mels), mel.shape[1], ids.shape[1])
        for row, (names, values) in enumerate(zip(tokens, mels, strict=True)):
            ids[row, : len(names)] = torch.tensor([self.ids[name] for name in names])
            mel[row, : len(values)] = torch.from_numpy((values - self.mean) / self.std)
            prior[row, : len(values), : len(names)] = beta_binomial_prior(len(values), len(names))
        return tuple(x.to(device) for x in (ids, lengths, mel, frames, prior))

    @torch.no_grad()
    def durations(self, tokens: tuple[str, ...], mel: np.ndarray) -> tuple[np.ndarray, float]:
        """Frames of each token `[K]`, and the mean log-probability of the path.

        Raises:
            UtteranceError: a token that was not in the training, or fewer frames than tokens.
        """
        # Asked first: what is too long for its audio is never trained on, and its phones with it.
        if len(mel) < len(tokens):
            raise UtteranceError(
                f"its text has {len(tokens)} phones, but its audio {len(mel)} frames alone"
            )
        unknown = sorted(set(tokens) - set(self.symbols))
        if unknown:
            raise UtteranceError(
                f"phones that the aligner was not trained with: {' '.join(unknown)}; "
                "python -m sniper.align --force trains it anew"
            )
        ids, lengths, values, frames, prior = self.batch(
            [tokens], [mel], next(self.network.parameters()).device
        )
        log_prob = self.network(ids, lengths, values)
        # With the prior as in training: without it a pause may swallow its neighbours.
        best = (log_prob + prior).cpu().numpy()
        pauses = np.array([token == SILENCE for token in tokens])
        # Here alone: in the training it made everything worse.
        cost = _LOUD_SILENCE * np.maximum(0, loudness(mel) - _QUIET) / (1 - _QUIET)
        best[0] -= np.outer(cost, pauses)
        found = monotonic_search(best, lengths.cpu().numpy(), frames.cpu().numpy())
        path = hard_path(found, len(mel))
        return found[0], float(log_prob.cpu().numpy()[path].mean())

    def align(self, samples: np.ndarray, spoken: Spoken) -> tuple[TimedText, list[str]]:
        """Align one utterance on the CPU, samples `[n]` at AUDIO's rate; raises UtteranceError."""
        tokens = tuple(token for _, part in spoken for token in part)
        durations, likelihood = self.durations(tokens, mel_of(samples))
        seconds = len(samples) / AUDIO.sample_rate
        # A frame stands for the middle of its window, so a border lies half a hop before it.
        borders = np.clip((np.cumsum([0, *durations]) - 0.5) * FRAME_SECONDS, 0, seconds)
        timed, at = [], 0
        for index, (word, part) in enumerate(spoken):
            until = at + len(part)
            times = zip(part, borders[at:until], borders[at + 1 : until + 1], strict=True)
            if word:
                timed.append((word, [(p, float(a), float(b)) for p, a, b in times]))
            elif durations[at] == 1 and timed and index + 1 < len(spoken):
                # One frame is the least that the search can give: there is no pause.
                name, inside = timed[-1]
                label, start, _ = inside[-1]
                timed[-1] = name, [*inside[:-1], (label, start, float(borders[until]))]
            at = until
        frames = int(sum(n for n, t in zip(durations, tokens, strict=True) if t != SILENCE))
        return timed_text(timed, seconds, likelihood, frames), []


def pick_device(name: str) -> torch.device:
    """The device of "auto", "cpu" or "cuda"; a GPU that is not there is a `SpeechError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise SpeechError("--device cuda: torch sees no GPU; use --device cpu")
    return torch.device(name)


class Training:
    """A training that goes on from its checkpoint.

    Args:
        examples: at least one; those with fewer frames than tokens are not used.
        checkpoint: written every hundred steps and at the end.
        key: of the examples; a checkpoint of others is begun anew with a warning.
        seed: of weights and order.
        steps: in all.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        checkpoint: Path,
        key: str,
        *,
        seed: int = 0,
        steps: int = STEPS,
        device: torch.device | None = None,
    ) -> None:
        self.examples = [e for e in examples if e.frames >= len(e.tokens)]
        if not self.examples:
            raise SpeechError("no utterance has as many frames as phones: nothing to train on")
        self.checkpoint, self.key = checkpoint, key
        self.seed, self.steps = seed, steps
        self.device = device or torch.device("cpu")
        self.step = 0
        # The caller's generator stays where it stands.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            symbols = sorted({token for e in self.examples for token in e.tokens})
            self.aligner = LearnedAligner(symbols, *self._statistics())
        self.aligner.network.to(self.device)
        self.optimizer = torch.optim.Adam(self.aligner.network.parameters(), _LEARNING_RATE)
        self.losses: list[float] = []
        self._resume()

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        count, total, square = 0, np.zeros(AUDIO.n_mels), np.zeros(AUDIO.n_mels)
        for example in self.examples:
            mel = np.load(example.mel).astype(np.float64)
            count, total, square = count + len(mel), total + mel.sum(0), square + (mel**2).sum(0)
        mean = total / count
        # Rounding can bring the difference below 0 where a band hardly varies.
        return mean, np.sqrt(np.maximum(square / count - mean**2, 1e-6))

    def _batches(self, epoch: int) -> list[list[int]]:
        """Utterances of like length together; a shuffle that depends on seed and epoch alone."""
        # Not from torch's generator, so that a training that was stopped goes on with the same
        # batches.
        order = np.random.default_rng([self.seed, epoch])
        noise = order.uniform(0.9, 1.1, len(self.examples))
        # Lengths with a little noise: like with like, and yet not the same neighbours in each
        # epoch.
        ranked = np.argsort([e.frames * n for e, n in zip(self.examples, noise, strict=True)])
        batches: list[list[int]] = [[]]
        longest = 0
        for index in ranked.tolist():
            longest = max(longest, self.examples[index].frames)
            if batches[-1] and longest * (len(batches[-1]) + 1) > _MAX_BATCH_FRAMES:
                batches.append([])
                longest = self.examples[index].frames
            batches[-1].append(index)
        order.shuffle(batches)
        return batches

    def run(self) -> Iterator[float]:
        """Train to the end, a loss for each step that was still to be done."""
        epoch = done = 0
        while self.step < self.steps:
            batches = self._batches(epoch)
            for batch in batches:
                done += 1
                if done <= self.step:
                    continue  # of an earlier process
                loss = self._train_step(batch)
                self.step += 1
                if self.step % _SAVE_EVERY == 0 or self.step == self.steps:
                    self._save()
                yield loss
                if self.step == self.steps:
                    return
            epoch += 1

    def _train_step(self, batch: list[int]) -> float:
        examples = [self.examples[index] for index in batch]
        mels = [np.load(example.mel).astype(np.float32) for example in examples]
        tensors = self.aligner.batch([e.tokens for e in examples], mels, self.device)
        ids, lengths, mel, frames, prior = tensors
        log_prob = self.aligner.network(ids, lengths, mel)
        posterior = log_prob + prior
        # All monotonic paths at once, since nobody knows the right one.
        loss = forward_sum_loss(posterior, lengths, frames)
        weight = self.step / self.steps
        weight = np.clip((weight - _BINARIZE_FROM) / (_BINARIZE_FULL - _BINARIZE_FROM), 0, 1)
        # Too early it would fix a path that was found by chance.
        if weight > 0:
            best = posterior.detach().cpu().numpy()
            found = monotonic_search(best, lengths.cpu().numpy(), frames.cpu().numpy())
            hard = torch.from_numpy(hard_path(found, mel.shape[1])).to(self.device)
            loss = loss + float(weight) * binarization_loss(posterior.log_softmax(-1), hard)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.aligner.network.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def _save(self) -> None:
        state = {
            "format": _CHECKPOINT_FORMAT,
            "key": self.key,
            "step": self.step,
            "symbols": list(self.aligner.symbols),
            "mean": torch.from_numpy(self.aligner.mean),
            "std": torch.from_numpy(self.aligner.std),
            "network": self.aligner.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_write(self.checkpoint) as file:
            torch.save(state, file)

    def _resume(self) -> None:
        state = _load(self.checkpoint)
        if state is None:
            return
        # The key covers texts, recordings, seed and steps: going on with others would mix two
        # trainings.
        if state["key"] != self.key:
            warnings.warn(
                f"{self.checkpoint} was trained on other recordings or texts: begun anew",
                stacklevel=3,
            )
            return
        self.aligner.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _load(path: Path) -> dict | None:
    """A checkpoint; None where there is none, and with a warning where it is damaged."""
    if not path.is_file():
        return None
    try:
        with held_signals():  # of which torch would make an error, as of damage
            state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] == _CHECKPOINT_FORMAT:
            return state
        reason = f"format {state['format']}, expected {_CHECKPOINT_FORMAT}"
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:100]
    warnings.warn(f"{path} cannot be used ({reason}): begun anew", stacklevel=3)
    return None


def load_trained(path: Path, steps: int) -> LearnedAligner | None:
    """A finished aligner for the CPU; None where the training is not finished."""
    state = _load(path)
    if state is None or state["step"] < steps:
        return None
    aligner = LearnedAligner(state["symbols"], state["mean"].numpy(), state["std"].numpy())
    aligner.network.load_state_dict(state["network"])
    aligner.network.eval()
    return aligner


def write_mel(path: Path, samples: np.ndarray) -> int:
    """Write an utterance's log-mel as half-precision .npy; returns its frames."""
    mel = mel_of(samples)
    # Several processes write mels at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # Half of the space on the disk, in steps far finer than what is to be told apart.
    np.save(content := io.BytesIO(), mel.astype(np.float16))
    try:
        temporary.write_bytes(content.getbuffer())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return len(mel)
