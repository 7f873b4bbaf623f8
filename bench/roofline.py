# SPDX-License-Identifier: Apache-2.0
"""PREDICTED times of every FastSpeech2 layer, pass and density on three GPUs. Nothing is measured.

python bench/roofline.py [--check]

Writes kernels/reports/roofline.csv. A time is a launch, device memory (each operand once, partial
sums twice) and the longer of two: executed FLOPs at the rate below, and L2 (executed FLOPs over the
tile's FLOPs per byte), both of the multiprocessors that have a program. Memory and the rest add up:
so the products measured on an H200 (bench/results/gpu/layers.json) are met within 10 % on average,
weight gradients predicted a quarter too slow. Dense is executed at what cuBLAS is taken to reach.
Predicted choice: the shorter time.

The rows `whole step` add up a training step of the default FastSpeech2 by parts, launches apart;
what each part assumes stands beside it. The baseline is our own dense step.
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
BATCH, LENGTH, TOKENS = 21, 540, 91
DENSITIES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.2)
_PASSES = ("fwd", "dgrad", "wgrad")
STEP_DENSITIES = (0.2, 0.5, 0.8, 1.0)
VALUE = 2  # bytes of a bf16 value
WAVES = 2  # programs of a weight gradient for each multiprocessor, as `launch.WAVES` has it

# The default model's layers, their number and the rows of a sequence: decoder and postnet, encoder
# and predictors; then those whose 80 channels no block of 64 divides.
STEP_LAYERS = (
    *(
        (layer, 4 * n, rows)
        for rows in (LENGTH, TOKENS)
        for layer, n in (((384, 384, 1), 4), ((384, 1536, 3), 1), ((1536, 384, 3), 1))
    ),
    ((256, 256, 5), 3, LENGTH),
    ((384, 256, 3), 2, TOKENS),
    ((256, 256, 3), 2, TOKENS),
    ((384, 256, 5), 1, TOKENS),
    ((256, 256, 5), 4, TOKENS),
)
DENSE_LAYERS = (((384, 80, 1), 1, LENGTH), ((80, 256, 5), 1, LENGTH), ((256, 80, 5), 1, LENGTH))
ATTENTION_LAYERS, CHANNELS = ((4, LENGTH), (4, TOKENS)), 384
# Kernels of a recorded step, counted by the profiler on an H200 less what our attention saves: with
# masks and without.
KERNELS, DENSE_KERNELS = 517, 712
PARAMETERS, OPTIMIZER_BYTES = 37.1e6, 36
# Visits of what is neither product nor attention, in bytes an element: by operation, channels,
# how often in a layer or model, what counts its rows (F decoder, E encoder, B both), and who does
# it (`both` sides alike, `dense` alone). Activations are bf16, the residual is float32.
VISITS = (
    ("residual, dropout, LayerNorm: forward", 384, 8, "B", 12, "both"),
    ("residual, dropout, LayerNorm: backward", 384, 8, "B", 16, "both"),
    ("gradient of ReLU and dropout", 1536, 4, "B", 6, "both"),
    ("ReLU and dropout behind the product", 1536, 4, "B", 4, "dense"),
    ("gradients of the inputs of q, k, v added", 384, 8, "B", 6, "both"),
    ("biases added and their gradients summed", 384, 20, "B", 2, "dense"),
    ("the same, hidden", 1536, 4, "B", 6, "dense"),
    ("positions and their dropout", 384, 1, "B", 42, "both"),
    ("BatchNorm, tanh, dropout: forward", 256, 4, "F", 8, "both"),
    ("BatchNorm, tanh, dropout: backward", 256, 4, "F", 10, "both"),
    ("variance predictors: ReLU, LayerNorm, dropout", 256, 9, "E", 20, "both"),
    ("variance predictors: sums, casts, masks", 384, 3, "E", 24, "both"),
    ("length regulation", 384, 1, "F", 44, "both"),
    ("mel, masks and loss", 80, 1, "F", 90, "both"),
)
# Each weight is cast for the products; a dense gradient is cast back and added to what is there.
CAST_BYTES, GRADIENT_BYTES = 6, 18


@dataclass(frozen=True)
class Chip:
    """Attainable rates in bf16, not a datasheet's. Those of the H200 are what one reached: dense
    products within a step, copies in memory, our attention by itself. What our tiles draw from the
    L2, and a launch, are fitted to the times of our products there. Of the others they are assumed:
    from the L2 the same share of what the multiprocessors can take.
    """

    name: str
    arch: int
    multiprocessors: int
    cublas_tflops: float
    kernel_tflops: float  # where nothing but the tensor cores limits a kernel of ours
    memory_tbs: float
    l2_tbs: float
    launch_us: float
    attention_tflops: float  # forward and backward with a key mask, heads of 192
    graph_us: float  # that a kernel of a recorded step takes to begin, to end and to follow


CHIPS = (
    Chip("H200", 90, 132, 480, 650, 4.2, 10.0, 5.0, 200, 2.0),
    Chip("H100", 90, 132, 480, 650, 2.9, 10.0, 5.0, 200, 2.0),
    Chip("A100", 80, 108, 200, 200, 1.6, 6.6, 5.0, 50, 2.5),
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
    assumption: str = ""


def predict(
    chip: Chip,
    layer: tuple[int, int, int],
    pass_: str,
    block: int,
    density: float,
    rows_of_sequence: int = LENGTH,
) -> Prediction:
    """The model of this module's docstring for one case."""
    c, n, taps = layer
    tokens = BATCH * rows_of_sequence
    flops = 2.0 * tokens * c * n * taps
    activations = VALUE * tokens * (c + n)
    path = "tma" if configs.has_tma(chip.arch) else "pointer"
    op = "wgrad" if pass_ == "wgrad" else "product"
    config = configs.for_length(
        configs.candidates(op, path, block, "half", chip.arch),
        tokens if taps == 1 else rows_of_sequence,
    )
    if pass_ == "wgrad":
        tile = (block, block * config.width)
        rows, columns = n // block, taps * c // block
        # A row's last group of blocks is rarely full.
        groups = rows * math.ceil(density * columns / config.width)
        executed = flops * groups * config.width / (rows * columns)
        splits = max(1, round(WAVES * chip.multiprocessors / groups))
        extra = 2 * 4 * splits * density * n * c * taps
        launches, programs = 2, groups * splits
    else:
        tile = (block, config.tokens)
        length = tokens if taps == 1 else rows_of_sequence
        padded = math.ceil(length / config.tokens) * config.tokens
        executed = flops * density * padded / length
        rows = (n if pass_ == "fwd" else c) // block
        programs = rows * tokens / length * padded / config.tokens
        extra, launches = 0.0, 1
    intensity = 2 * tile[0] * tile[1] / (VALUE * (tile[0] + tile[1]))
    moved = activations + VALUE * density * n * c * taps + extra
    filled = min(1.0, programs / chip.multiprocessors)
    memory = moved / chip.memory_tbs / 1e6
    limits = {
        "tensor cores": executed / (chip.kernel_tflops * filled) / 1e6,
        "L2": executed / intensity / (chip.l2_tbs * filled) / 1e6,
    }
    limit = max(limits, key=limits.__getitem__)
    time = memory + limits[limit] + launches * chip.launch_us
    limit = "memory" if memory > limits[limit] else limit
    dense = dense_us(chip, layer, tokens) + chip.launch_us
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


def dense_us(chip: Chip, layer: tuple[int, int, int], tokens: int) -> float:
    """Microseconds of one dense pass, without its launch."""
    c, n, taps = layer
    flops, moved = 2.0 * tokens * c * n * taps, VALUE * (tokens * (c + n) + n * c * taps)
    return max(flops / chip.cublas_tflops, moved / chip.memory_tbs) / 1e6


def elementwise_bytes(side: str) -> float:
    """Bytes of a `sparse` or `dense` step's visits outside products, attention and optimizer."""
    rows = {"F": BATCH * LENGTH, "E": BATCH * TOKENS, "B": BATCH * (LENGTH + TOKENS)}
    visits = sum(
        channels * times * rows[which] * size
        for _, channels, times, which, size, who in VISITS
        if who in ("both", side)
    )
    gradients = GRADIENT_BYTES if side == "dense" else 0
    return visits + PARAMETERS * (CAST_BYTES + gradients)


def predict_step(chip: Chip, density: float) -> list[Prediction]:
    """A whole training step, part by part and summed: blocks of 64, all eligible layers of one
    density.
    """
    dense = sum(
        3 * count * dense_us(chip, layer, BATCH * rows)
        for layer, count, rows in (*STEP_LAYERS, *DENSE_LAYERS)
    )
    sparse = sum(
        3 * count * dense_us(chip, layer, BATCH * rows) for layer, count, rows in DENSE_LAYERS
    )
    for layer, count, rows in STEP_LAYERS:
        for pass_ in _PASSES:
            p = predict(chip, layer, pass_, 64, density, rows)
            launches = 2 if pass_ == "wgrad" else 1
            ours = p.predicted_us - launches * chip.launch_us
            theirs = p.predicted_dense_us - chip.launch_us
            sparse += count * min(ours, theirs)
    masked = sum(c * n * taps * count for (c, n, taps), count, _ in STEP_LAYERS)
    visited = PARAMETERS - masked * (1 - density)
    heads = sum(n * 4.0 * BATCH * rows**2 * CHANNELS * 3.5 for n, rows in ATTENTION_LAYERS)
    moved = elementwise_bytes("sparse"), elementwise_bytes("dense")
    elementwise = [b / chip.memory_tbs / 1e6 for b in moved]
    optimizer = [n * OPTIMIZER_BYTES / chip.memory_tbs / 1e6 for n in (visited, PARAMETERS)]
    attention = heads / chip.attention_tflops / 1e6
    parts = {
        "products": (sparse, dense, "bf16, blocks of 64, the faster of ours and dense by layer"),
        "elementwise": (
            *elementwise,
            f"{moved[0] / 1e9:.1f} GB through memory; dense {moved[1] / 1e9:.1f} GB",
        ),
        "attention": (attention, attention, f"{chip.attention_tflops:g} TFLOP/s; padding counted"),
        "optimizer": (
            *optimizer,
            f"clip + Adam + clearing: {OPTIMIZER_BYTES} bytes of every active parameter",
        ),
        "launch": (
            KERNELS * chip.graph_us,
            DENSE_KERNELS * chip.graph_us,
            f"{KERNELS} kernels of a recorded step, dense {DENSE_KERNELS}, {chip.graph_us:g} us",
        ),
    }
    ours, theirs = (sum(p[i] for p in parts.values()) for i in range(2))
    parts["all"] = (ours, theirs, f"{BATCH} x {LENGTH} frames, {TOKENS} tokens; parts in sequence")
    return [
        Prediction(
            chip=chip.name,
            layer="whole step",
            pass_=part,
            block=64,
            density=density,
            gflop=0.0,
            mbytes=0.0,
            tile_intensity=0.0,
            predicted_us=round(us, 1),
            predicted_dense_us=round(dense, 1),
            predicted_ratio=round(dense / us, 2),
            predicted_limit="",
            predicted_choice="",
            assumption=assumption,
        )
        for part, (us, dense, assumption) in parts.items()
    ]


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
    for chip in CHIPS:
        for density in STEP_DENSITIES:
            writer.writerows(asdict(part) for part in predict_step(chip, density))
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
    for chip in CHIPS:
        steps = [predict_step(chip, density)[-1] for density in STEP_DENSITIES]
        dense = f"dense {steps[0].predicted_dense_us / 1e3:.2f} ms"
        print(
            chip.name, "whole step", dense, *(f"{p.density}: {p.predicted_ratio}x" for p in steps)
        )


if __name__ == "__main__":
    main()
