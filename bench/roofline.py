# SPDX-License-Identifier: Apache-2.0
"""PREDICTED times of every FastSpeech2 layer, pass and density on three GPUs. Nothing is measured.

python bench/roofline.py [--check]

Writes kernels/reports/roofline.csv. A time is the longest of four: executed FLOPs at the rate
below, device memory (each operand once, partial sums twice), L2 (executed FLOPs over the tile's
FLOPs per byte), and the fullest multiprocessor's share when there are few programs; plus a launch.
Dense is executed at what cuBLAS is taken to reach. Predicted choice: the shorter time.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sniper.kernels import configs

REPORT = Path(__file__).parents[1] / "kernels" / "reports" / "roofline.csv"
# in, out, taps: attention; the feed-forward blocks of two models; predictors; postnet.
LAYERS = (
    (384, 384, 1),
    (384, 1536, 3),
    (1536, 384, 3),
    (256, 1024, 9),
    (1024, 256, 1),
    (384, 256, 3),
    (256, 256, 3),
    (256, 256, 5),
)
BATCH, LENGTH = 20, 560
DENSITIES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2)
VALUE = 2  # bytes of a bf16 value


@dataclass(frozen=True)
class Chip:
    """Assumed attainable rates in bf16: not a datasheet's, and not measured by this program."""

    name: str
    arch: int
    multiprocessors: int
    cublas_tflops: float
    kernel_tflops: float  # where nothing but the tensor cores limits a kernel of ours
    memory_tbs: float
    l2_tbs: float
    launch_us: float


CHIPS = (
    Chip("H200", 90, 132, 700, 650, 4.2, 5.5, 3.0),
    Chip("H100", 90, 132, 700, 650, 2.9, 5.5, 3.0),
    Chip("A100", 80, 108, 250, 200, 1.6, 4.0, 3.0),
)


@dataclass(frozen=True)
class Prediction:
    """One row of the report; times are microseconds."""

    chip: str
    layer: str
    pass_: str
    block: int
    density: float
    gflop: float
    mbytes: float
    tile_intensity: float
    predicted_us: float
    predicted_dense_us: float
    predicted_ratio: float
    predicted_limit: str
    predicted_choice: str


def predict(
    chip: Chip, layer: tuple[int, int, int], pass_: str, block: int, density: float
) -> Prediction:
    """The model of this module's docstring for one case."""
    c, n, taps = layer
    tokens = BATCH * LENGTH
    flops = 2.0 * tokens * c * n * taps
    activations = VALUE * tokens * (c + n)
    path = "tma" if configs.has_tma(chip.arch) else "pointer"
    op = "wgrad" if pass_ == "wgrad" else "product"
    config = configs.for_length(
        configs.candidates(op, path, block, "half", chip.arch), tokens if taps == 1 else LENGTH
    )
    if pass_ == "wgrad":
        tile = (block, block * config.width)
        rows, columns = n // block, taps * c // block
        # A row's last group of blocks is rarely full.
        groups = rows * math.ceil(density * columns / config.width)
        executed = flops * groups * config.width / (rows * columns)
        splits = max(1, round(4 * chip.multiprocessors / groups))
        extra = 2 * 4 * splits * density * n * c * taps
        launches, programs = 2, groups * splits
    else:
        tile = (block, config.tokens)
        length = tokens if taps == 1 else LENGTH
        padded = math.ceil(length / config.tokens) * config.tokens
        executed = flops * density * padded / length
        rows = (n if pass_ == "fwd" else c) // block
        programs = rows * tokens / length * padded / config.tokens
        extra, launches = 0.0, 1
    intensity = 2 * tile[0] * tile[1] / (VALUE * (tile[0] + tile[1]))
    moved = activations + VALUE * density * n * c * taps + extra
    filled = min(1.0, programs / chip.multiprocessors)
    limits = {
        "tensor cores": executed / (chip.kernel_tflops * filled) / 1e6,
        "memory": moved / chip.memory_tbs / 1e6,
        "L2": executed / intensity / (chip.l2_tbs * filled) / 1e6,
    }
    limit = max(limits, key=limits.__getitem__)
    time = limits[limit] + launches * chip.launch_us
    dense_bytes = activations + VALUE * n * c * taps
    dense = max(flops / chip.cublas_tflops, dense_bytes / chip.memory_tbs) / 1e6 + chip.launch_us
    return Prediction(
        chip=chip.name,
        layer=f"{c}-{n}-{taps}",
        pass_=pass_,
        block=block,
        density=density,
        gflop=round(executed / 1e9, 2),
        mbytes=round(moved / 1e6, 1),
        tile_intensity=round(intensity, 1),
        predicted_us=round(time, 1),
        predicted_dense_us=round(dense, 1),
        predicted_ratio=round(dense / time, 2),
        predicted_limit=limit,
        predicted_choice="triton" if time < dense else "dense",
    )


def report() -> str:
    """The whole table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Prediction)], lineterminator="\n")
    writer.writeheader()
    for chip in CHIPS:
        for layer in LAYERS:
            for block in (64, 128):
                if layer[0] % block or layer[1] % block:
                    continue
                for density in DENSITIES:
                    for pass_ in ("fwd", "dgrad", "wgrad"):
                        writer.writerow(asdict(predict(chip, layer, pass_, block, density)))
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare with the file")
    args = parser.parse_args()
    if args.check:
        raise SystemExit(REPORT.read_text() != report())
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report())
    print("predictions, not measurements: dense time over ours, fwd + dgrad + wgrad")
    for chip in CHIPS:
        for layer in LAYERS:
            for block in (64, 128):
                if layer[0] % block or layer[1] % block:
                    continue
                cells = []
                for density in DENSITIES:
                    passes = [predict(chip, layer, p, block, density) for p in _PASSES]
                    dense = sum(p.predicted_dense_us for p in passes)
                    cells.append(f"{density}: {dense / sum(p.predicted_us for p in passes):4.2f}x")
                name = "-".join(map(str, layer))
                print(f"{chip.name} {name:11} b{block:<4}", *cells)


_PASSES = ("fwd", "dgrad", "wgrad")

if __name__ == "__main__":
    main()
