# SPDX-License-Identifier: Apache-2.0
"""How far synthesised speech is from the true: cepstra, alignment, F0.

Everything is computed on frames of log-mel and F0, with numpy.
"""

from __future__ import annotations

import math

import numpy as np

from sniper.tts.audio.config import FeatureConfig

COEFFICIENTS = 24
RANGE_DB = 60.0


def cepstra(log_mel: np.ndarray, features: FeatureConfig, loudest: float) -> np.ndarray:
    """c_m = 2/N sum_n a_n cos(pi m (n + 1/2) / N), m = 1..24, of log amplitudes a in N mel bands.

    These are the coefficients of a = c_0 / 2 + sum_m c_m cos(...); c_0, the loudness, is left out.

    Args:
        log_mel: `[T, N]`, in the base of `features`.
        loudest: natural logarithm of the reference's largest amplitude, as `log_amplitude` has it;
            what is more than 60 dB below is raised to there, since nobody hears it.

    Returns:
        `[T, 24]` float64, natural logarithms.
    """
    # Without a floor the silence between words, where logarithms vary most, would decide the mean.
    a = np.maximum(log_amplitude(log_mel, features), loudest - RANGE_DB * math.log(10) / 20)
    n = a.shape[1]
    m = np.arange(1, COEFFICIENTS + 1)
    basis = np.cos(np.pi * m[None, :] * (np.arange(n)[:, None] + 0.5) / n)  # [N, 24]
    return a @ basis * (2 / n)


def log_amplitude(log_mel: np.ndarray, features: FeatureConfig) -> np.ndarray:
    """Log-mel in natural logarithms, float64."""
    return np.asarray(log_mel, dtype=np.float64) * (
        math.log(10) if features.log_base == "10" else 1.0
    )


def align(distance: np.ndarray) -> np.ndarray:
    """Dynamic time warping: the path of least summed distance from corner to corner.

    Steps advance one sequence, the other, or both (preferred in a tie). Computed one anti-diagonal
    at a time.

    Args:
        distance: `[N, M]`, finite, not empty.

    Returns:
        Pairs of frames `[K, 2]`, from (0, 0) to (N - 1, M - 1).

    Source: Sakoe and Chiba (1978), symmetric steps without slope weights.
    """
    n, m = distance.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    for k in range(n + m - 1):
        # Cells of one anti-diagonal depend on the two before it alone, so numpy computes each at
        # once.
        i = np.arange(max(0, k - m + 1), min(n, k + 1))
        j = k - i
        before = np.minimum(total[i, j], np.minimum(total[i, j + 1], total[i + 1, j]))
        total[i + 1, j + 1] = distance[i, j] + before
    i, j = n, m
    path = [(i - 1, j - 1)]
    while (i, j) != (1, 1):
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda step: total[step])
        path.append((i - 1, j - 1))
    return np.array(path[::-1])


def mel_cepstral_distortion(
    truth: np.ndarray, predicted: np.ndarray, features: FeatureConfig
) -> tuple[float, np.ndarray]:
    """10 / ln 10 * mean over the path of sqrt(2 sum_m (c_m - c'_m)^2), in dB.

    By Parseval that is the root-mean-square difference in dB of the two spectra, smoothed to 24
    coefficients over the mel bands and without their loudness. The cepstra are those of our own
    log-mels, so the figure compares with others of this program, not with those of SPTK's cepstra.

    Args:
        truth, predicted: log-mel `[T, n_mels]` and `[T', n_mels]`, not normalised.

    Returns:
        The distortion, and the path `[K, 2]` that `align` found by the same distance.

    Source: Kubichek, Mel-cepstral distance measure for objective speech quality assessment (1993).
    """
    loudest = float(log_amplitude(truth, features).max())
    x, y = (cepstra(mel, features, loudest) for mel in (truth, predicted))
    # All pairs by one product; rounding may leave tiny negative squares, hence the maximum below.
    square = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2 * x @ y.T
    distance = np.sqrt(np.maximum(square, 0.0))
    path = align(distance)
    mean = distance[path[:, 0], path[:, 1]].mean()
    return float(10 / math.log(10) * math.sqrt(2) * mean), path


def f0_errors(truth: np.ndarray, predicted: np.ndarray, path: np.ndarray) -> tuple[float, float]:
    """Root-mean-square difference of ln F0, and the share of frames with another voicing.

    Args:
        truth, predicted: F0 in Hz by frame, 0 where unvoiced.
        path: pairs of frames `[K, 2]`.

    Returns:
        The first over pairs that are voiced in both (NaN if none is), the second over all pairs.
    """
    a, b = truth[path[:, 0]], predicted[path[:, 1]]
    # Where only one side is voiced there is no F0 to compare; the second figure counts those
    # frames.
    both = (a > 0) & (b > 0)
    difference = np.log(a[both]) - np.log(b[both])
    rmse = math.sqrt(np.square(difference).mean()) if both.any() else math.nan
    return rmse, float(((a > 0) != (b > 0)).mean())
