# SPDX-License-Identifier: Apache-2.0
"""A trained run on held-out sentences: losses, distances, sound, and what its masks look like.

RUN/evaluation.json      figures by sentence for the final and the best checkpoint, masks by layer
RUN/samples/0.mp3, ...   the first sentences, spoken by the final checkpoint
TRUTH/f0.npz, 0.mp3, ... the same of the true mels, by the same vocoder; 0-recorded.mp3: recordings
TRUTH/words.json         how many words a recogniser gets wrong in recordings and true mels
TRUTH/vocoder.json       which vocoder that was; F0 is by Griffin-Lim, whoever speaks
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sniper.compare import files, recognition
from sniper.compare.distances import f0_errors, mel_cepstral_distortion
from sniper.compare.pitch import f0
from sniper.ops.bits import pack_bits, unpack_bits
from sniper.sparsity.state import mask_shape
from sniper.synthesize import load_speaker
from sniper.training import checkpoint
from sniper.tts.audio.griffin_lim import mel_to_audio
from sniper.tts.audio.reading import read_audio
from sniper.tts.audio.vocoder import load_vocoder
from sniper.tts.corpus.dataset import FeatureDataset, Item, collate
from sniper.tts.corpus.layouts import find_recording
from sniper.tts.errors import UtteranceError
from sniper.tts.files import is_as_written, sealed
from sniper.tts.speaker import Speaker

VERSION = 1
EVALUATION, WORDS = "evaluation.json", "words.json"
WORD_ERRORS = "word_errors"
SPOKEN = 3
ANY = "any"  # vocoder
# F0 does not need the sound to be good, and Griffin-Lim is most of the time.
F0_ITERATIONS = 30
METRICS = ("loss", "mel_l1", "mcd", "log_f0_rmse", "voicing_error", "duration_ms", "length_percent")


@dataclass(frozen=True)
class Truth:
    """The held-out sentences.

    Args:
        dataset: the split; its first `len(f0)` sentences are measured.
        f0: Hz by frame of each true mel, spoken by Griffin-Lim, 0 where unvoiced.
        vocoder: path of the HiFi-GAN that speaks the samples; None: Griffin-Lim does.
        recognised: whether a recogniser listens to what is spoken.
    """

    dataset: FeatureDataset
    f0: list[np.ndarray]
    vocoder: str | None = None
    recognised: bool = False

    def mel(self, index: int) -> np.ndarray:
        """True log-mel `[T, n_mels]`, not normalised."""
        return self.dataset.info.statistics.denormalize_mel(self.dataset[index].mel)


def load_truth(
    folder: Path, dataset: FeatureDataset, sentences: int, vocoder: str | None = None
) -> Truth:
    """Reads what is known of the true sentences, or finds it out once for all runs.

    Args:
        folder: where it is kept.
        dataset: the held-out split.
        sentences: how many to measure, at most.
        vocoder: path of the HiFi-GAN that speaks the samples; None: Griffin-Lim does.
    """
    count = min(sentences, len(dataset))
    deaf = recognition.why_not(dataset.info)
    if deaf is not None:
        print(f"no word error rate: {deaf}", flush=True)
    truth, features = Truth(dataset, [], vocoder, deaf is None), dataset.info.features
    known = _read_f0(folder / "f0.npz", dataset, count)
    # Comparisons of earlier versions noted no vocoder, since they had no choice but Griffin-Lim.
    same_voice = files.read_json(folder / "vocoder.json") == vocoder
    speak = load_vocoder(vocoder, features)
    for index in range(min(SPOKEN, count)):
        spoken, recorded = folder / f"{index}.mp3", folder / f"{index}-recorded.mp3"
        if known is None:  # these may be of other sentences
            spoken.unlink(missing_ok=True)
            recorded.unlink(missing_ok=True)
        if not spoken.exists() or not same_voice:
            files.write_mp3(spoken, speak(truth.mel(index)), features.sample_rate)
        # A corpus that was prepared elsewhere has no recordings here; then there is one clip less.
        if not recorded.exists() and (audio := _recording(dataset, index)) is not None:
            files.write_mp3(recorded, audio, features.sample_rate)
    files.write_json(folder / "vocoder.json", vocoder)
    words = _read_words(folder, dataset.ids[:count]) if truth.recognised else {}
    if known is not None and words is not None:
        truth.f0.extend(known)
        return truth
    copies = []
    for index in range(count):
        audio = mel_to_audio(truth.mel(index), features, n_iter=F0_ITERATIONS)
        truth.f0.append(f0(audio, features))
        if words is None:
            copies.append(_word_errors(truth, index, audio))
    if words is None:
        recordings = [_recording(dataset, index) for index in range(count)]
        found = {
            "ids": dataset.ids[:count],
            "words": [len(recognition.words_of(text)) for text in dataset.texts[:count]],
            "copies": copies,
            "recordings": [
                None if audio is None else _word_errors(truth, index, audio)
                for index, audio in enumerate(recordings)
            ],
        }
        files.write_json(folder / WORDS, found)
    # Written last: where this file is, the other files belong to the same sentences.
    named = {f"f0-{i}": value for i, value in enumerate(truth.f0)}
    files.write_arrays(folder / "f0.npz", {"ids": np.array(dataset.ids[:count]), **named})
    return truth


def _word_errors(truth: Truth, index: int, audio: np.ndarray) -> int:
    """Words that a recogniser gets wrong in a sentence that somebody speaks."""
    spoken = recognition.words_of(truth.dataset.texts[index])
    return recognition.word_errors(spoken, recognition.heard(audio, truth.dataset.info.features))


def _read_words(folder: Path, ids: Sequence[str]) -> dict[str, Any] | None:
    found = read_words(folder)
    return found if found is not None and found["ids"] == list(ids) else None


def read_words(folder: Path) -> dict[str, Any] | None:
    """What is known of the true sentences' words: by sentence `ids`, `words`, how many there are,
    and the errors in `copies` and `recordings` (None where there is no recording); None: nothing.
    """
    found = files.read_json(folder / WORDS)
    if not isinstance(found, dict):
        return None
    lists = [found.get(key) for key in ("ids", "words", "copies", "recordings")]
    whole = all(isinstance(one, list) for one in lists) and len({len(x) for x in lists if x}) == 1
    return found if whole else None


def _read_f0(path: Path, dataset: FeatureDataset, count: int) -> list[np.ndarray] | None:
    """F0 of the first `count` sentences as it was kept; None: not there, damaged, or of others."""
    saved = files.read_arrays(path)
    # The corpus may have been prepared anew, with other sentences held out.
    if "ids" not in saved or saved["ids"].tolist() != dataset.ids[:count]:
        return None
    names = [f"f0-{index}" for index in range(count)]
    found = [saved[name] for name in names if name in saved]
    lengths = dataset.mel_lengths[:count].tolist()
    whole = len(found) == count
    if not whole or any(f.shape != (n,) for f, n in zip(found, lengths, strict=True)):
        return None
    return found


def _recording(dataset: FeatureDataset, index: int) -> np.ndarray | None:
    """The sentence as it was recorded, where the corpus still lies where it was prepared from."""
    prepared = dataset.path.parent
    places = [prepared / "corpus", prepared]
    # corpus.json says where the recordings were when they were prepared.
    with contextlib.suppress(KeyError, TypeError):
        places.append(Path(files.read_json(prepared / "corpus.json")["settings"]["corpus"]["root"]))
    for place in places:
        path = find_recording(place, dataset.ids[index])
        with contextlib.suppress(UtteranceError):
            if path is not None:
                return read_audio(path, dataset.info.features)
    return None


def evaluate(run: Path, truth: Truth, device: str = "cpu") -> dict[str, Any]:
    """Measures a finished run and writes its evaluation and samples.

    Args:
        run: its folder.
        truth: what it is measured against.
        device: where the model runs.

    Returns:
        What evaluation.json holds: `checkpoints` by `final` and `best`, each with `step`, `epoch`,
        `metrics`, one number a sentence, and `word_errors`, the same or None; `layers` as
        `masks_by_layer` gives them.

    Raises:
        CheckpointError: the run has none that can be read.
    """
    checkpoints: dict[str, Any] = {}
    for name, which in (("final", "last"), ("best", "best")):
        path = checkpoint.find(run, which)
        # Often the last is the best, and measuring takes longer than an epoch of the demo.
        same = [c for c in checkpoints.values() if c["step"] == path.name]
        if same:
            checkpoints[name] = same[0]
            continue
        speaker = load_speaker(path, device=device, vocoder=truth.vocoder)
        figures = [_measure(speaker, truth, index) for index in range(len(truth.f0))]
        errors = [figure.pop(WORD_ERRORS, None) for figure in figures]
        checkpoints[name] = {
            "step": path.name,
            "epoch": checkpoint.read_meta(path)["progress"]["epoch"],
            "metrics": {metric: [f[metric] for f in figures] for metric in METRICS},
            WORD_ERRORS: errors if truth.recognised else None,
        }
        if name == "final":
            _speak(speaker, truth, run / "samples")
    result = {
        "version": VERSION,
        "vocoder": truth.vocoder,
        "ids": truth.dataset.ids[: len(truth.f0)],
        "checkpoints": checkpoints,
        "layers": masks_by_layer(run),
    }
    # The result is given as it will be read again, with None for NaN.
    plain = json.loads(files.dumps(result))
    files.write_json(run / EVALUATION, sealed(plain, EVALUATION, run, []))
    return plain


def read_evaluation(
    run: Path, sentences: int | None = None, vocoder: str | None = ANY
) -> dict[str, Any] | None:
    """The run's evaluation, if it has a whole one of this version, of so many sentences, whose
    samples this vocoder spoke.
    """
    found = files.read_json(run / EVALUATION)
    if not isinstance(found, dict) or not is_as_written(found, EVALUATION):
        return None
    try:
        count = len(found["ids"])
        parts = [found["checkpoints"][which] for which in ("final", "best")]
        counts = {len(part["metrics"][metric]) for part in parts for metric in METRICS}
        whole = found["version"] == VERSION and counts == {count} and found["layers"] is not None
        whole = whole and all(isinstance(part["epoch"], int) for part in parts)
    except (KeyError, TypeError):
        return None
    fits = sentences in (None, count) and vocoder in (ANY, found.get("vocoder"))
    return found if whole and fits else None


def _measure(speaker: Speaker, truth: Truth, index: int) -> dict[str, float]:
    """All metrics of one sentence; NaN where the model gives nothing that can be measured."""
    result, spoken = measure_mel(speaker, truth, index)
    if spoken is not None:
        result |= measure_sound(truth, index, *spoken)
    elif truth.recognised:
        # What is not spoken is not heard: each of its words is wrong.
        result[WORD_ERRORS] = len(recognition.words_of(truth.dataset.texts[index]))
    return result


def measure_sound(truth: Truth, index: int, mel: np.ndarray, path: np.ndarray) -> dict[str, float]:
    """The metrics of one sentence that need sound, and its word errors where somebody listens.

    Args:
        mel: what was spoken, log-mel `[T, n_mels]`.
        path: pairs of frames by which it is aligned with the true mel.
    """
    features = truth.dataset.info.features
    audio = mel_to_audio(mel, features, n_iter=F0_ITERATIONS)
    errors = f0_errors(truth.f0[index], f0(audio, features), path)
    result: dict[str, float] = {"log_f0_rmse": errors[0], "voicing_error": errors[1]}
    if truth.recognised:
        result[WORD_ERRORS] = _word_errors(truth, index, audio)
    return result


@torch.no_grad()
def measure_mel(
    speaker: Speaker, truth: Truth, index: int
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray] | None]:
    """The metrics of one sentence that need no sound, NaN for the others; what was spoken, log-mel
    `[T, n_mels]`, and the path by which it is aligned with the true mel, where there is one.
    """
    item, features = truth.dataset[index], speaker.info.features
    device = next(speaker.model.parameters()).device
    total, terms = speaker.model.loss(collate([item]).to(device))
    result: dict[str, float] = {metric: math.nan for metric in METRICS}
    result["loss"] = float(total)
    result["mel_l1"] = float(terms.get("mel_after", terms["mel_before"]))
    spoken = _infer(speaker, item)
    if spoken is None:
        return result, None
    mel, durations = spoken
    milliseconds = 1000 * features.hop_length / features.sample_rate
    # The end of sentence has no sound of its own.
    off = np.abs(durations[:-1] - item.durations[:-1])
    result["duration_ms"] = float(off.mean() * milliseconds)
    result["length_percent"] = 100 * abs(len(mel) - len(item.mel)) / len(item.mel)
    if len(mel) > 10 * len(item.mel) or not np.isfinite(mel).all():
        return result, None
    result["mcd"], path = mel_cepstral_distortion(truth.mel(index), mel, features)
    return result, (mel, path)


def _infer(speaker: Speaker, item: Item) -> tuple[np.ndarray, np.ndarray] | None:
    """Log-mel `[T, n_mels]`, not normalised, and frames of each token; None for broken weights."""
    device = next(speaker.model.parameters()).device
    tokens = torch.from_numpy(item.tokens)[None].to(device)
    who = None if item.speaker is None else torch.tensor([item.speaker], device=device)
    try:
        out = speaker.model.infer(tokens, speakers=who)
    except ValueError:
        return None
    mel = speaker.info.statistics.denormalize_mel(out.mel[0].float().cpu().numpy())
    return mel, out.durations[0].cpu().numpy()


def _speak(speaker: Speaker, truth: Truth, folder: Path) -> None:
    features = speaker.info.features
    for index in range(min(SPOKEN, len(truth.f0))):
        spoken = _infer(speaker, truth.dataset[index])
        if spoken is not None and len(spoken[0]) and np.isfinite(spoken[0]).all():
            audio = speaker.vocoder(spoken[0])
            files.write_mp3(folder / f"{index}.mp3", audio, features.sample_rate)


def masks_by_layer(run: Path) -> dict[str, Any]:
    """Density of every masked parameter at every stage, and the blocks themselves.

    Returns:
        By parameter: `numel`; `density` by sparsity; in block mode `blocks` (rows of out blocks,
        taps, in blocks) and `masks`: by sparsity the blocks' bits in hexadecimal, the first in the
        lowest bit. Empty for a dense run. Sparsities are keys such as "0.8".
    """
    return layers_of(checkpoint.load(run).state["sniper"])


def layers_of(state: dict[str, Any] | None) -> dict[str, Any]:
    """The same of what `Sniper.state_dict` gave; None: of a dense run."""
    if state is None or state["masks"] is None:
        return {}
    size = state["block_size"]
    layers: dict[str, Any] = {}
    for sparsity, stage in sorted(state["masks"].items(), reverse=True):
        for name, bits in stage.items():
            shape = torch.Size(state["shapes"][name])
            mask = unpack_bits(bits, mask_shape(shape, size))
            layer = layers.setdefault(name, {"numel": shape.numel(), "density": {}})
            layer["density"][f"{sparsity:g}"] = float(mask.double().mean())
            if size is not None:
                blocks = mask if mask.dim() == 3 else mask[:, None]  # [out, taps, in]
                layer["blocks"] = list(blocks.shape)
                layer.setdefault("masks", {})[f"{sparsity:g}"] = (
                    pack_bits(blocks).numpy().tobytes().hex()
                )
    return layers
