# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or not there: JSON without NaN, arrays, sound that browsers play."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from sniper.tts.errors import require
from sniper.tts.files import atomic_write

LOUDEST = 0.9  # MP3 may overshoot


def write_text(path: Path, text: str) -> None:
    """Replaces `path` at once; its folder is made."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """`data` as strict JSON; NaN and infinity become null."""
    write_text(path, dumps(data))


def dumps(data: Any) -> str:
    """Strict JSON, without spaces."""
    # NaN is no JSON: browsers and other languages refuse a file that has one.
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
    peak = float(np.abs(audio).max())
    samples = np.asarray(audio, dtype=np.float32) * (LOUDEST / peak if peak > 0 else 1.0)
    soundfile = require("soundfile")
    # Into memory first, since soundfile writes in place and a kill would leave half a clip.
    encoded = io.BytesIO()
    with soundfile.SoundFile(
        encoded,
        "w",
        sample_rate,
        1,
        "MPEG_LAYER_III",
        format="MP3",
        bitrate_mode="VARIABLE",
        compression_level=0.7,
    ) as file:
        file.write(samples)
    write_bytes(path, encoded.getvalue())


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Named arrays, for `read_arrays`."""
    packed = io.BytesIO()
    np.savez(packed, **cast(dict[str, Any], arrays))
    write_bytes(path, packed.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote, checksums checked; nothing if the file is not there or damaged."""
    try:
        with np.load(path) as found:
            return dict(found)
    # Each layer of a damaged archive has errors of its own, and none of them makes it whole.
    except Exception:
        return {}


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` at once; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
