# SPDX-License-Identifier: Apache-2.0
"""Small files that are complete or not there: JSON without NaN, sound that browsers play."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from sniper.tts.corpus.store import atomic_write
from sniper.tts.errors import require

LOUDEST = 0.9  # MP3 may overshoot


def write_text(path: Path, text: str) -> None:
    """Replaces `path` at once; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, data: Any) -> None:
    """`data` as strict JSON; NaN and infinity become null."""
    write_text(path, dumps(data))


def dumps(data: Any) -> str:
    """Strict JSON, without spaces."""
    return json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def read_json(path: Path) -> Any:
    """What `write_json` wrote, or None if there is no readable file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(v) for v in data]
    if isinstance(data, np.ndarray):
        return _finite(data.tolist())
    if isinstance(data, np.generic):
        data = data.item()
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_mp3(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Mono audio `[n]` in [-1, 1] as MP3 of about 4 kB a second, brought to the same peak."""
    path.parent.mkdir(parents=True, exist_ok=True)
    peak = float(np.abs(audio).max())
    samples = np.asarray(audio, dtype=np.float32) * (LOUDEST / peak if peak > 0 else 1.0)
    soundfile = require("soundfile")
    with soundfile.SoundFile(
        str(path),
        "w",
        sample_rate,
        1,
        "MPEG_LAYER_III",
        format="MP3",
        bitrate_mode="VARIABLE",
        compression_level=0.7,
    ) as file:
        file.write(samples)
