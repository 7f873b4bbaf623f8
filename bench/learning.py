# SPDX-License-Identifier: Apache-2.0
"""What a matrix of `sniper.compare` learns, many runs at a time on one GPU; the seconds of its
epochs, from a CPU; and both as folders that `sniper.compare --report-only` reads.

    python bench/learning.py train real --prepared data/real --out parts --workers 12 --limit 240
    python bench/learning.py seconds real --prepared data/real --out seconds.json
    python bench/learning.py assemble real --prepared data/real --parts parts \\
        --seconds seconds.json --output runs/compare-real

What is learned does not depend on where it is computed, and what it costs does: losses and
distances come from the GPU, where torch computes on masked weights, and a run's seconds are the sum
of what epochs of its sparsities take on a CPU, measured apart and two arms at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import queue
import statistics
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MEL_STEP = 0.05  # in log10: the resolution in which spoken mels are kept, half a dB
EXTRA_DECAYS = (0.95, 0.99)  # averages that are looked at besides, with --averages


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sub = result.add_subparsers(dest="what", required=True)
    for name in ("train", "seconds", "assemble"):
        one = sub.add_parser(name)
        one.add_argument("matrix", nargs="+", help="built-in matrices or files")
        one.add_argument("--prepared", nargs="+", type=Path, required=True, help="one a matrix")
        one.add_argument("--arms", type=lambda text: text.split(","))
        one.add_argument("--override", action="append", default=[], help="key=value, for all arms")
        if name == "train":
            one.add_argument("--out", type=Path, required=True)
            one.add_argument("--workers", type=int, default=12)
            one.add_argument("--limit", type=float, default=math.inf, help="seconds for all")
            one.add_argument("--device", default="cuda")
            one.add_argument("--sentences", type=int, default=64)
            one.add_argument("--mels", default="", help="seeds whose spoken mels are kept: 0,1")
            one.add_argument("--averages", action="store_true", help="look at averages besides")
        elif name == "seconds":
            one.add_argument("--out", type=Path, required=True)
            one.add_argument("--epochs", type=int, default=2, help="measured of each sparsity")
        else:
            one.add_argument("--parts", type=Path, required=True)
            one.add_argument("--seconds", type=Path, required=True)
            one.add_argument("--output", type=Path, required=True)
    return result


def runs_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, seed by seed, so that what a limit cuts off are the last seeds."""
    from sniper.compare.arms import load_matrix

    found = []
    for which, (name, prepared) in enumerate(zip(options.matrix, options.prepared, strict=True)):
        # A corpus of either kind that is prepared already is read alike.
        at = ["data.kind=ljspeech", f"data.prepared={prepared}"]
        matrix = load_matrix(name, overrides=[*at, *options.override])
        for place, arm in enumerate(matrix.arms):
            if options.arms and arm.name not in options.arms:
                continue
            for order, seed in enumerate(arm.seeds or matrix.seeds):
                run = {"matrix": name, "arm": arm.name, "seed": seed}
                found.append({**run, "prepared": str(prepared), "order": (order, place, which)})
    return sorted(found, key=lambda run: run["order"])


def config_of(run: dict[str, Any], override: list[str], device: str) -> Any:
    from sniper.compare.arms import load_matrix

    at = ["data.kind=ljspeech", f"data.prepared={run['prepared']}"]
    matrix = load_matrix(run["matrix"], overrides=[*at, *override])
    arm = next(arm for arm in matrix.arms if arm.name == run["arm"])
    config = matrix.config(arm, run["seed"], Path("unused"), 1)
    own = {"device": device, "workers": 0, "cuda_graphs": "off", "precision": "fp32"}
    if device == "cuda":
        own["precision"] = "tf32"
    return config.model_copy(update={"train": config.train.model_copy(update=own)})


def train(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    began, runs = time.monotonic(), runs_of(options)
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    for run in runs:
        waiting.put(run)
    workers = [
        context.Process(target=work, args=(waiting, done, options), daemon=True)
        for _ in range(min(options.workers, len(runs)))
    ]
    for worker in workers:
        worker.start()
    count = 0
    while count < len(runs) and time.monotonic() - began < options.limit:
        try:
            line = done.get(timeout=1)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                break
            continue
        count += not line.startswith("note")
        print(f"{time.monotonic() - began:6.1f} s {count}/{len(runs)} {line}", flush=True)
    for worker in workers:
        worker.terminate()
    print(f"{count} of {len(runs)} runs in {time.monotonic() - began:.0f} s", flush=True)
    return 0 if count == len(runs) else 1


def work(waiting: Any, done: Any, options: argparse.Namespace) -> None:
    import torch

    from sniper.ops import use_backend

    torch.set_num_threads(1)
    while True:
        try:
            run = waiting.get(timeout=2)
        except queue.Empty:
            return
        name = f"{Path(run['matrix']).stem}.{run['arm']}.{run['seed']}"
        started = time.monotonic()
        try:
            # On a GPU of this size torch on masked weights is as good, and needs no choice by time.
            with use_backend("dense") if options.device == "cuda" else contextlib.nullcontext():
                result, mels = train_one(run, options)
        except Exception:
            traceback.print_exc()
            done.put(f"{name} failed")
            continue
        if mels:
            import numpy as np

            np.savez_compressed(options.out / f"{name}.npz", **mels)
        text = json.dumps(result, allow_nan=True)
        (options.out / f"{name}.json").write_text(text)
        final = result["metrics"]["final"]
        done.put(
            f"{name} loss {result['history'][-1]['valid']['total']:.3f} "
            f"mcd {statistics.fmean(final['mcd']):.2f} in {time.monotonic() - started:.1f} s"
        )


def train_one(run: dict[str, Any], options: argparse.Namespace) -> tuple[dict[str, Any], dict]:
    """Trains one run in memory and measures it."""
    import torch

    from sniper.compare.evaluate import METRICS, Truth
    from sniper.training.average import WeightAverage
    from sniper.training.data import make_loader
    from sniper.training.device import set_up_torch
    from sniper.training.progress import NotFinite, Observer
    from sniper.training.trainer import Trainer
    from sniper.tts.corpus.dataset import FeatureDataset

    config = config_of(run, options.override, options.device)
    set_up_torch(config.train)
    prepared = Path(run["prepared"])
    train, valid = (FeatureDataset(prepared / f"{s}.safetensors") for s in ("train", "valid"))

    class InMemory(Trainer):
        """Keeps what a checkpoint would: the weights that speak, of the best epoch."""

        best: tuple[int, dict[str, torch.Tensor]]

        def save(self, best: bool = False) -> None:
            self._check_finite()
            if best:
                with self._speaking():
                    state = self.model.state_dict()
                    self.best = self.progress.epoch, {n: t.clone() for n, t in state.items()}

    class Averages(Observer):
        """Averages of other decays over the same run, validated too."""

        def __init__(self) -> None:
            self.of = [WeightAverage(trainer.model, d) for d in EXTRA_DECAYS]
            self.losses: list[list[float]] = [[] for _ in self.of]

        def updated(self, progress: Any, values: Any) -> None:
            for average in self.of:
                average.update()

        def epoch_ended(self, end: Any) -> None:
            for average, losses in zip(self.of, self.losses, strict=True):
                with average.in_place():
                    losses.append(trainer.validate()["total"])

    trainer = InMemory(config, train, valid, train.info)
    # One batch of all held-out sentences: its padding costs a GPU less than more batches would.
    few = min(options.sentences, len(valid))
    halves = [list(range(0, few, 2)), list(range(1, few, 2))]
    trainer._valid_loader = make_loader(valid, halves, 0, pin_memory=False)
    observer = Averages() if options.averages else None
    if observer is not None:
        trainer.observer = observer
    how = "trained"
    try:
        trainer.fit()
    except NotFinite as error:
        how = f"diverged: {error}"
    truth = Truth(valid, [], None)
    metrics, mels = {}, {}
    with trainer._speaking():
        keep = str(run["seed"]) in options.mels.split(",")
        metrics["final"], mels = measure(trainer, truth, few, keep)
        if observer is not None:
            with observer.of[-1].in_place():
                metrics["average"], _ = measure(trainer, truth, few, False)
    epoch, weights = trainer.best
    trainer.model.load_state_dict(weights)
    metrics["best"], _ = measure(trainer, truth, few, False)
    assert set(metrics["final"]) <= set(METRICS)
    result = {
        **run,
        "status": how,
        "config": config.to_dict(),
        "history": trainer.progress.history,
        "update": trainer.progress.update,
        "best_epoch": epoch + 1,
        "metrics": metrics,
        "ids": valid.ids[:few],
        "averages": []
        if observer is None
        else dict(zip(EXTRA_DECAYS, observer.losses, strict=True)),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    return result, mels


def measure(
    trainer: Any, truth: Any, count: int, keep: bool
) -> tuple[dict[str, list[float]], dict]:
    """Distances of the sentences, by name, and the spoken mels as small numbers."""
    import numpy as np

    from sniper.compare.evaluate import measure_mel

    speaker: Any = SimpleNamespace(model=trainer.model.eval(), info=trainer.info)
    rows, mels = [], {}
    for index in range(count):
        figures, mel = measure_mel(speaker, truth, index)
        rows.append(figures)
        if keep and mel is not None:
            small = np.clip(np.round(mel[0] / MEL_STEP) + 200, 0, 255).astype(np.uint8)
            mels[f"mel-{index}"] = small
    trainer.model.train()
    return {key: [row[key] for row in rows] for key in rows[0]}, mels


if __name__ == "__main__":
    options = parser().parse_args()
    os.environ.setdefault("SNIPER_SELF_CHECK", "skip")  # no kernel of ours multiplies here
    sys.exit({"train": train}[options.what](options))
