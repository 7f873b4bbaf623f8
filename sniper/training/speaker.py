# SPDX-License-Identifier: Apache-2.0
"""The speaker that a run has trained."""

from __future__ import annotations

from pathlib import Path

from sniper.training import checkpoint as store
from sniper.training.config import from_dict
from sniper.training.device import pick_device
from sniper.training.restore import read_speech
from sniper.tts.audio.vocoder import load_vocoder
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.speaker import Speaker


def load_speaker(
    checkpoint: str | Path,
    which: str = "best",
    device: str = "cpu",
    vocoder: str | Path | None = None,
) -> Speaker:
    """A `Speaker` from a run's or a checkpoint's folder; it needs nothing but that folder.

    Args:
        checkpoint: folder of a run or of one checkpoint.
        which: `best` or `last`, for a run.
        device: where to run: `auto`, `cpu`, `cuda` or `cuda:N`.
        vocoder: a HiFi-GAN, see `sniper.tts.audio.hifigan_files`; None: Griffin-Lim.

    Raises:
        CheckpointError: none there, damaged, or of a version that does not fit.
        ConfigError: a device that is not there.
        SpeechError: a vocoder that cannot be used.
    """
    where = pick_device(device)
    # Speaking needs no optimizer, which is two thirds of a checkpoint.
    saved = store.load(Path(checkpoint), which, weights_only=True)
    try:
        info = read_speech(saved.meta["speech"])
        config = from_dict(saved.meta["config"])
        settings = config.fastspeech2_config(
            len(info.vocabulary), info.features.n_mels, len(info.speakers)
        )
        model = FastSpeech2(settings)
        model.load_state_dict(saved.weights)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise store.CheckpointError(
            f"checkpoint {saved.path} does not fit this version of the program: {reason}"
        ) from error
    return Speaker(model.to(where), info, load_vocoder(vocoder, info.features, where))
