# SPDX-License-Identifier: Apache-2.0
"""A corpus of two dozen sentences and a model of a few thousand weights: a run takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sniper.training import checkpoint
from sniper.training.config import Config, from_dict
from sniper.training.device import set_up_torch
from sniper.training.progress import Observer
from sniper.training.trainer import Trainer
from sniper.tts.corpus.dataset import FeatureDataset

UTTERANCES, VALID = 24, 3
# Settings that are younger than the golden files, with the value that changes nothing.
LATER_SETTINGS = {
    "train.patience": None,
    "data.speakers": "none",
    "init": None,
    "vocoder": None,
    "train.max_frames_per_rank": None,
    "train.exchange": "fp32",
    "train.timeout_minutes": 10.0,
    "train.ema": None,
    "train.valid_every": None,
    "sparsity.growth": "score",
    "sparsity.prune": True,
}
SPEAKERS = ("anna", "ben", "clara")

_TINY: dict[str, Any] = {
    "name": "tiny",
    "sample_text": "The grey horse slept by the river.",
    "data": {"kind": "demo", "utterances": UTTERANCES, "valid": VALID},
    "model": {
        "d_model": 32,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "ffn_dim": 64,
        "duration_predictor": {"layers": 1, "channels": 32},
        "pitch_predictor": {"layers": 1, "channels": 32},
        "energy_predictor": {"layers": 1, "channels": 32},
        "postnet_layers": 2,
        "postnet_channels": 32,
    },
    "sparsity": {
        "block_size": 16,
        "schedule": {0: 0.6, 1: 0.3, 2: 0.0},
        "max_param_sparsity": 0.9,
        "restore_init": True,
        "prime_moments": 0.0,
        "max_lr_scale": 10.0,
        "score_batches": 2,
    },
    "train": {
        "epochs": 3,
        "max_frames": 1300,
        "warmup": 20,
        "workers": 0,
        "threads": 1,  # as fast as two at this size, and not slowed by others on the machine
        "device": "cpu",
        "log_every": 1,
        "sample_every": 100,
    },
}


def make_corpus(folder: Path) -> Path:
    """Speaks and prepares the corpus."""
    from sniper.prepare import prepare_demo

    prepare_demo(folder, utterances=UTTERANCES, valid=VALID, workers=1, progress=False)
    return folder


def make_speakers(demo: Path, folder: Path) -> Path:
    """The demo corpus' recordings as if three people had spoken them, prepared."""
    from sniper.prepare import prepare_ljspeech

    root, lines = folder / "corpus", (demo / "corpus/metadata.csv").read_text().splitlines()
    root.mkdir(parents=True)
    for name in ("wavs", "alignments.jsonl", "synthesis.json"):
        (root / name).symlink_to(demo / "corpus" / name)
    spoken = [f"{line}|{SPEAKERS[i % 3]}\n" for i, line in enumerate(lines)]
    (root / "metadata.csv").write_text("".join(spoken))
    prepare_ljspeech(root, folder, speakers="column", valid=VALID, workers=1, progress=False)
    return folder


def tiny(corpus: Path, output: Path, **sections: dict[str, Any]) -> Config:
    """The small run's config; `train={"epochs": 1}` changes single settings."""
    data = {k: dict(v) if isinstance(v, dict) else v for k, v in _TINY.items()}
    data["output"] = str(output)
    data["data"]["root"] = str(corpus)
    for name, section in sections.items():
        data[name] = {**data[name], **section} if isinstance(section, dict) else section
    return from_dict(data)


def make_trainer(config: Config, observer: Observer | None = None) -> Trainer:
    """A trainer on the config's corpus, which must be prepared."""
    set_up_torch(config.train)
    folder = Path(config.data.root)
    train, valid = (FeatureDataset(folder / f"{s}.safetensors") for s in ("train", "valid"))
    return Trainer(config, train, valid, train.info, observer)


def fit(config: Config, observer: Observer | None = None) -> Trainer:
    """Resumes, if there is something to resume, and trains to the end."""
    trainer = make_trainer(config, observer)
    trainer.resume()
    trainer.fit()
    return trainer


def everything(run: Path) -> dict[str, Any]:
    """All that a run's last checkpoint holds, but for what the machine spent on it."""
    saved = checkpoint.load(run)

    def untimed(values: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if "second" not in k and "memory" not in k}

    progress = untimed(saved.meta["progress"])
    rows = [untimed(row) for row in progress["history"]]
    sniper = saved.state["sniper"]
    if sniper is not None:
        sniper["masks"].pop(0.0, None)  # nothing pruned: with or without, that says the same
    return {"weights": saved.weights, "state": saved.state, **progress, "history": rows}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested structures are not equal, tensors bit for bit and memory layout included."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {one.keys() ^ other.keys()}"]
        return [d for k in one for d in differences(one[k], other[k], f"{where}.{k}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}.{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.stride() == other.stride() and one.equal(other)
        return [] if same else [where]
    return [] if type(one) is type(other) and one == other else [f"{where}: {one!r}, {other!r}"]


def command(module: str, *arguments: object, **options: Any) -> subprocess.Popen:
    """Starts `python -m sniper.MODULE` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", f"sniper.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**options.pop("env", os.environ), "PYTHONFAULTHANDLER": "1"},
        **options,
    )


HEARD = {"the": "DH AH0", "grey": "G R EY1", "horse": "HH OW1 R S", "slept": "S L EH1 P T"}


def with_lexicon(run: Path, folder: Path) -> Path:
    """A copy of a run that reads text through the lexicon HEARD, as if its corpus had been aligned:
    its phonemes are ARPAbet's without ZH. The weights stay, whatever they make of those.
    """
    from sniper.tts.text.arpabet import CONSONANTS, VOWELS
    from sniper.tts.text.text import LexiconFrontend

    shutil.copytree(run, folder)
    phones = ["sil", *(v + digit for v in VOWELS for digit in "012"), *(CONSONANTS - {"ZH"})]
    # The model has a few more tokens than these; nobody uses them.
    phones += [phone + digit for digit in "012" for phone in sorted(CONSONANTS - {"ZH"})]
    for path in (folder / "checkpoints").glob("step-*"):
        meta = checkpoint.read_meta(path)
        pad, *others, eos = meta["speech"]["vocabulary"]
        changed = {
            "frontend": LexiconFrontend(HEARD).to_json(),
            "vocabulary": [pad, *phones[: len(others)], eos],
        }
        checkpoint.write_meta(path, {**meta, "speech": {**meta["speech"], **changed}})
    return folder
