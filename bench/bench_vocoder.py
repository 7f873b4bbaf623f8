# SPDX-License-Identifier: Apache-2.0
"""How long vocoders take on a CPU: real-time factor, and the price of pieces.

    python bench/bench_vocoder.py --seconds 5

HiFi-GAN in the three sizes of its paper with random weights (the time does not depend on them),
beside Griffin-Lim, on one thread. A factor below 1 is faster than speech. CPU time, so that others
on the machine count little. Rows go to bench/results/vocoder_cpu.csv.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from common import append_rows, check_close, percentiles, rows

from sniper.tts.audio.config import FeatureConfig
from sniper.tts.audio.hifigan import HifiGan, HifiGanConfig
from sniper.tts.audio.hifigan_files import MelSettings
from sniper.tts.audio.vocoder import GriffinLim, HifiGanVocoder

FEATURES = FeatureConfig()
_WIDE = ((16, 16, 4, 4), (3, 7, 11), ((1, 3, 5),) * 3)
SIZES = {
    "hifigan-v1": HifiGanConfig(80, 512, (8, 8, 2, 2), *_WIDE),
    "hifigan-v2": HifiGanConfig(80, 128, (8, 8, 2, 2), *_WIDE),
    "hifigan-v3": HifiGanConfig(
        80, 256, (8, 8, 4), (16, 16, 8), (3, 5, 7), ((1, 2), (2, 6), (3, 12)), two_convs=False
    ),
}
# One piece is the reference; from 64 frames on, sound begins after about a second.
CHUNKS = (64, 256)


def measure(seconds: float, repeats: int) -> list[str]:
    """Times all vocoders in turns and appends their rows; lines for people."""
    frames = round(seconds * FEATURES.sample_rate / FEATURES.hop_length)
    length = frames * FEATURES.hop_length / FEATURES.sample_rate
    mel = np.random.default_rng(0).normal(-2, 1, (frames, 80)).astype(np.float32)
    settings = MelSettings(hop_length=256, n_mels=80, log_base="e")
    griffin_lim = GriffinLim(FEATURES)
    ways: dict[str, Callable[[], object]] = {"griffin-lim": lambda: griffin_lim(mel)}
    for name, config in SIZES.items():
        torch.manual_seed(0)
        generator = HifiGan(config).eval().requires_grad_(False)
        vocoder = HifiGanVocoder(generator, settings, FEATURES)

        def speak(chunk: int, vocoder: HifiGanVocoder = vocoder) -> np.ndarray:
            return np.concatenate(list(vocoder.stream(mel, chunk)))

        whole = torch.from_numpy(speak(frames))
        for chunk in (frames, *CHUNKS):
            check_close(f"{name} {chunk}", torch.from_numpy(speak(chunk)), whole, 1e-4)
            label = name if chunk == frames else f"{name} by {chunk}"
            ways[label] = lambda chunk=chunk, speak=speak: speak(chunk)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - start))
    cuts = {name: percentiles(each) for name, each in times.items()}
    what = {"op": "vocoder", "shape": f"{frames}x80", "block": 0, "density": 1.0}
    dense = cuts["griffin-lim"][1]
    append_rows(
        "vocoder_cpu",
        rows(cuts, dense, torch.device("cpu"), **what, dtype="float32", pass_="fwd"),
    )
    return [f"{name:18s} {p50 / 1e3 / length:.3f}" for name, (_, p50, _) in cuts.items()]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Real-time factors of vocoders on the CPU.")
    parser.add_argument("--seconds", type=float, default=5.0, help="of speech (default: 5)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("real-time factors")
    print("\n".join(measure(options.seconds, options.repeats)))


if __name__ == "__main__":
    main()
