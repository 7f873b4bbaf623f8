# SPDX-License-Identifier: Apache-2.0
"""What a matrix of `sniper.compare` learns, many runs at a time on one GPU or some on a CPU; the
seconds of its epochs, from a CPU; and both as folders that `sniper.compare --report-only` reads.

    python bench/learning.py train real --prepared data/real --out parts --workers 12 --limit 240
    python bench/learning.py seconds real --prepared data/real --out seconds.json
    python bench/learning.py assemble real --prepared data/real --parts parts \\
        --seconds seconds.json --output runs/compare-real

What is learned does not depend on where it is computed, and what it costs does: losses and
distances come from `train`, which on a GPU has torch compute on masked weights (tf32) and on a CPU
our kernels (`--device cpu`, float32), and a run's seconds are the sum of what epochs of its
sparsities take on a CPU, measured apart and two arms at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
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

import numpy as np

MOST_STAGES = 4  # of an arm, which are measured
VALID_FRAMES = 6500  # padded, of a batch of held-out sentences
SOUND = ".sound.json"  # behind a run's name: what was heard of its mels
MEL_STEP = 0.05  # in log10: the resolution in which spoken mels are kept, one dB


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sub = result.add_subparsers(dest="what", required=True)
    for name in ("train", "seconds", "assemble"):
        one = sub.add_parser(name)
        one.add_argument("matrix", nargs="+", help="built-in matrices or files")
        one.add_argument("--prepared", nargs="+", type=Path, required=True, help="one a matrix")
        one.add_argument("--arms", type=lambda text: text.split(","), help="in this order")
        one.add_argument("--override", action="append", default=[], help="key=value, for all arms")
        if name == "train":
            one.add_argument("--out", type=Path, required=True)
            one.add_argument("--seeds", type=numbers, help="of all arms, in place of the matrix's")
            one.add_argument("--workers", type=int, default=12)
            one.add_argument("--limit", type=float, default=math.inf, help="seconds for all")
            one.add_argument("--device", default="cuda")
            one.add_argument("--sentences", type=int, default=64)
            one.add_argument("--mels", default="", help="MATRIX.ARM.SEED,... whose mels are kept")
            one.add_argument("--main", default="", help="arms that come first")
            one.add_argument("--probed", type=int, default=2, help="seeds validated within epochs")
        elif name == "seconds":
            one.add_argument("--out", type=Path, required=True)
            one.add_argument("--epochs", type=int, default=2, help="measured of each sparsity")
            one.add_argument("--batches", type=int, default=8, help="of such an epoch")
        else:
            one.add_argument("--parts", type=Path, required=True)
            one.add_argument("--seconds", type=Path, required=True)
            one.add_argument("--output", type=Path, required=True)
            one.add_argument("--sentences", type=int, default=64)
            one.add_argument("--no-sound", action="store_true", help="no F0, nobody listens")
    return result


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def runs_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, those of `--main` first and then seed by seed: what a limit cuts off comes last."""
    from sniper.compare.arms import load_matrix

    found, main = [], options.main.split(",")
    for name, prepared in zip(options.matrix, options.prepared, strict=True):
        # A corpus of either kind that is prepared already is read alike.
        at = ["data.kind=ljspeech", f"data.prepared={prepared}"]
        matrix = load_matrix(name, seeds=options.seeds, overrides=[*at, *options.override])
        # Where the sparsity of some arm changes in steps, and what the others do at that time.
        steps = [
            matrix.config(arm, 0, Path("unused"), 1).sparsity_schedule() for arm in matrix.arms
        ]
        probes = sorted({epoch for s in steps if len(s.steps) in (3, 4) for epoch in s.steps} - {0})
        asked = options.arms or [arm.name for arm in matrix.arms]
        for arm in matrix.arms:
            if arm.name not in asked:
                continue
            for number, seed in enumerate(arm.seeds or matrix.seeds):
                run = {"matrix": name, "arm": arm.name, "seed": seed, "prepared": str(prepared)}
                run["order"] = (
                    arm.name not in main,
                    number,
                    Path(name).stem.startswith("tune"),
                    asked.index(arm.name),
                )
                run |= {"probes": probes, "probe": number < options.probed}
                label = f"{Path(name).stem}.{arm.name}.{seed}"
                run["keep"] = any(fnmatch.fnmatch(label, mask) for mask in options.mels.split(","))
                found.append(run)
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
            np.savez(options.out / f"{name}.npz", **mels)
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

    from sniper.compare.evaluate import METRICS, Truth, layers_of
    from sniper.ops.timings import device_name
    from sniper.training.data import make_loader, valid_batches
    from sniper.training.device import set_up_torch
    from sniper.training.progress import NotFinite, Observer
    from sniper.training.trainer import Trainer
    from sniper.tts.corpus.dataset import FeatureDataset

    config = config_of(run, options.override, options.device)
    set_up_torch(config.train)
    prepared = Path(run["prepared"])
    train, valid = (FeatureDataset(prepared / f"{s}.safetensors") for s in ("train", "valid"))

    class InMemory(Trainer):
        """Keeps what a checkpoint would: the weights that speak, after the best epoch."""

        best: tuple[int, dict[str, torch.Tensor]]

        def save(self, best: bool = False) -> None:
            self._check_finite()
            if best:
                with self._speaking():
                    state = self.model.state_dict()
                    self.best = self.progress.epoch, {n: t.clone() for n, t in state.items()}

    class Raw(Observer):
        """The loss of the trained weights themselves beside that of their average."""

        losses: list[float] = []

        def epoch_ended(self, end: Any) -> None:
            # Called while the model holds the average; a second exchange gives the weights.
            self.losses = [*self.losses, trainer.validate()["total"]]

    trainer = InMemory(config, train, valid, train.info)
    few = min(options.sentences, len(valid))
    # Larger batches than in training, which a GPU takes in one go.
    held_out = [[i for i in batch if i < few] for batch in valid_batches(valid, VALID_FRAMES)]
    trainer._valid_loader = make_loader(valid, [b for b in held_out if b], 0, pin_memory=False)
    averaged = trainer.average is not None
    observer = trainer.observer = Raw() if averaged else Observer()
    probe(trainer, run["probes"] if run["probe"] else [])
    how = "trained"
    try:
        trainer.fit()
    except NotFinite as error:
        how = f"diverged: {error}"
    truth = Truth(valid, [], None)
    metrics, mels = {}, {}
    with trainer._speaking():
        metrics["final"], mels = measure(trainer, truth, few, run["keep"])
    if averaged and run["probe"]:
        metrics["raw"], _ = measure(trainer, truth, few, False)
    epoch, weights = trainer.best
    metrics["best"] = metrics["final"]
    if epoch < len(trainer.progress.history):
        trainer.model.load_state_dict(weights)
        metrics["best"], _ = measure(trainer, truth, few, False)
    assert set(metrics["final"]) <= set(METRICS)
    result = {
        **run,
        "status": how,
        "config": config.to_dict(),
        "history": trainer.progress.history,
        "update": trainer.progress.update,
        "best_epoch": epoch,
        "metrics": metrics,
        "ids": valid.ids[:few],
        "layers": layers_of(trainer.sniper.state_dict() if trainer.sniper else None),
        "raw": observer.losses if isinstance(observer, Raw) else [],
        "device": device_name(torch.device(options.device)),
        "torch": torch.__version__,
    }
    return result, mels


def probe(trainer: Any, epochs: list[int]) -> None:
    """Validates within these epochs alone, ten times, the average and the weights."""
    every = max(1, trainer.batches_per_epoch // 10)

    def validate_within() -> None:
        progress = trainer.progress
        ends = progress.batch == trainer._batches.of_epoch(progress.epoch)
        if progress.epoch not in epochs or ends or progress.update % every:
            return
        losses = [trainer.validate()["total"]]
        if trainer.average is not None:
            with trainer.average.in_place():
                losses.append(trainer.validate()["total"])
        progress.within.append([progress.update, *losses])

    trainer._validate_within = validate_within


def measure(
    trainer: Any, truth: Any, count: int, keep: bool
) -> tuple[dict[str, list[float]], dict]:
    """Distances of the sentences, by name, and the spoken mels as small numbers."""
    from sniper.compare.evaluate import measure_mel

    speaker: Any = SimpleNamespace(model=trainer.model.eval(), info=trainer.info)
    rows, mels = [], {}
    for index in range(count):
        figures, mel = measure_mel(speaker, truth, index)
        rows.append(figures)
        if keep and mel is not None:
            small = np.clip(np.round(mel[0] / MEL_STEP) + 200, 0, 255).astype(np.uint8)
            # Differences in time, which compress better; they wrap around.
            mels[f"mel-{index}"] = np.diff(small, axis=0, prepend=np.zeros_like(small[:1]))
    trainer.model.train()
    return {key: [row[key] for row in rows] for key in rows[0]}, mels


def seconds(options: argparse.Namespace) -> int:
    """Measures frames per second of every stage of every arm beside dense, two at a time."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {"machine": None, "matrices": {}}
    for name, prepared in zip(options.matrix, options.prepared, strict=True):
        stages = stages_of(name, prepared, options)
        # Forward and backward through the list at the same time: each stage is measured twice, with
        # another one beside it.
        with context.Pool(2) as pool:
            ways = [(name, prepared, way, options) for way in (stages, stages[::-1])]
            (machine, one), (_, other) = pool.starmap(rates_of, ways)
        found["machine"] = machine
        joined = [rate for rate in (*one, *other) if rate["arm"] is not None]
        dense = statistics.median(rate["dense"] for rate in joined)
        found["matrices"][name] = {
            "dense": dense,
            "stages": [{**rate, "frames_per_second": dense * rate["ratio"]} for rate in joined],
        }
        options.out.write_text(json.dumps(found, indent=1))
    return 0


def stages_of(name: str, prepared: Path, options: argparse.Namespace) -> list[tuple[str, float]]:
    """Arms and sparsities that take different times; an arm that shares its stage with an earlier
    one is not measured again.
    """
    from sniper.compare.arms import load_matrix

    found, seen = [], set()
    for arm in load_matrix(name, overrides=options.override).arms:
        if options.arms and arm.name not in options.arms:
            continue
        run = {"matrix": name, "arm": arm.name, "seed": 0, "prepared": str(prepared)}
        config = config_of(run, options.override, "cpu")
        stages = config.sparsity_schedule().sparsities
        if len(stages) > MOST_STAGES:
            continue  # what lies between others' is read off between them
        for sparsity in stages:
            key = stage_key(config, sparsity)
            if key not in seen and key is not None:
                seen.add(key)
                found.append((arm.name, sparsity))
    return found


def stage_key(config: Any, sparsity: float) -> tuple | None:
    """What an epoch's time depends on; None: it is dense torch."""
    if config.sparsity_schedule().sparsities == (0.0,):
        return None
    own = config.sparsity
    # Without pruning all sparsities cost the same.
    return own.block_size, own.paper_exact, own.prune, sparsity if own.prune else 0.0


def rates_of(
    name: str, prepared: Path, stages: list[tuple[str, float]], options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from sniper.compare.arms import load_matrix
    from sniper.compare.worker import machine

    reference = load_matrix(name, overrides=options.override).reference

    def trainer_of(arm: str, schedule: dict[int, float]) -> Any:
        run = {"matrix": name, "arm": arm, "seed": 0, "prepared": str(prepared)}
        config = config_of(run, options.override, "cpu")
        of_sparsity = {"schedule": schedule, "schedule_fractions": None}
        own = {
            "epochs": 10_000,
            "batches_per_epoch": options.batches,
            "valid_every": None,
            "patience": None,
        }
        parts = {"sparsity": of_sparsity, "train": own}
        changed = {k: getattr(config, k).model_copy(update=v) for k, v in parts.items()}
        return quiet_trainer(config.model_copy(update=changed))

    dense = trainer_of(reference, {0: 0.0})
    dense.run_epoch()
    found = []
    for arm, sparsity in stages:
        highest = (
            config_of(
                {"matrix": name, "arm": arm, "seed": 0, "prepared": str(prepared)},
                options.override,
                "cpu",
            )
            .sparsity_schedule()
            .sparsities[0]
        )
        schedule = {0: highest} if sparsity == highest else {0: highest, 1: sparsity}
        trainer = trainer_of(arm, schedule)
        trainer.score()
        rows = [trainer.run_epoch() for _ in schedule]
        warm = trainer.run_epoch()  # in which executors were chosen
        pairs = [(dense.run_epoch(), trainer.run_epoch()) for _ in range(options.epochs)]
        ratios = [b["frames_per_second"] / a["frames_per_second"] for a, b in pairs]
        found.append(
            {
                "arm": arm,
                "sparsity": sparsity,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "dense": statistics.median(a["frames_per_second"] for a, _ in pairs),
                "change_seconds": rows[-1]["change_seconds"],
                "score_seconds": trainer.progress.score_seconds,
                "first": warm["frames_per_second"],
            }
        )
        print(f"{name} {arm} {sparsity:g}: {found[-1]['ratio']:.2f} times dense", flush=True)
    return machine(), found


def quiet_trainer(config: Any) -> Any:
    """A trainer that saves nothing and validates next to nothing."""
    from sniper.training.data import make_loader
    from sniper.training.device import set_up_torch
    from sniper.training.trainer import Trainer
    from sniper.tts.corpus.dataset import FeatureDataset

    set_up_torch(config.train)
    train, valid = (
        FeatureDataset(Path(config.data.prepared) / f"{s}.safetensors") for s in ("train", "valid")
    )

    class Quiet(Trainer):
        def save(self, best: bool = False) -> None:
            pass

    trainer = Quiet(config, train, valid, train.info)
    trainer._valid_loader = make_loader(valid, [[0]], 0, pin_memory=False)
    return trainer


def assemble(options: argparse.Namespace) -> int:
    """Writes run folders of what was learned and what it takes."""
    from sniper.compare.evaluate import load_truth
    from sniper.tts.corpus.dataset import FeatureDataset

    measured = json.loads(options.seconds.read_text())
    for name, prepared in zip(options.matrix, options.prepared, strict=True):
        arms = [str(prepared), options.override, name]
        rates = Rates(measured["matrices"][name], functools.partial(config_of_arm, *arms))
        valid = FeatureDataset(prepared / "valid.safetensors")
        truth = None
        if not options.no_sound:
            options.output.joinpath("truth").mkdir(parents=True, exist_ok=True)
            truth = load_truth(options.output / "truth", valid, options.sentences)
        for path in sorted(options.parts.glob(f"{Path(name).stem}.*.json")):
            if path.name.endswith(SOUND):  # what an earlier call heard of a run
                continue
            found = json.loads(path.read_text())
            write_run(found, path, rates, measured["machine"], truth, options)
    return 0


def config_of_arm(prepared: str, override: list[str], name: str, arm: str) -> Any:
    run = {"matrix": name, "arm": arm, "seed": 0, "prepared": prepared}
    return config_of(run, override, "cpu")


class Rates:
    """Frames per second, and the seconds of a change of sparsity and of scoring, by stage.

    Args:
        measured: of one matrix, as `seconds` wrote it.
        config_of_arm: gives the settings of an arm by its name.
    """

    def __init__(self, measured: dict[str, Any], config_of_arm: Any):
        self._dense = measured["dense"]
        self._by_key: dict[tuple, dict[float, list[dict[str, Any]]]] = {}
        for stage in measured["stages"]:
            key = stage_key(config_of_arm(stage["arm"]), stage["sparsity"])
            assert key is not None, stage  # dense is not among the stages
            *kind, sparsity = key
            self._by_key.setdefault(tuple(kind), {}).setdefault(sparsity, []).append(stage)

    def at(self, config: Any, sparsity: float, what: str = "frames_per_second") -> float:
        """Of a run with these settings at this sparsity; between two that were measured, the
        seconds of a frame are interpolated.
        """
        key = stage_key(config, sparsity)
        if key is None:
            return self._dense if what == "frames_per_second" else 0.0
        *kind, asked = key
        stages = self._by_key[tuple(kind)]
        known = sorted(stages)
        values = [statistics.fmean(stage[what] for stage in stages[s]) for s in known]
        if what != "frames_per_second":
            return statistics.fmean(values)
        if not known[0] <= asked <= known[-1]:
            raise ValueError(f"seconds: expected a sparsity in {known}, got {asked}")
        return 1 / float(np.interp(asked, known, [1 / value for value in values]))


def write_run(
    result: dict[str, Any],
    path: Path,
    rates: Rates,
    machine: dict[str, Any],
    truth: Any,
    options: argparse.Namespace,
) -> None:
    """One run as `sniper.train` and the comparison would have left it, but for its weights."""
    from sniper.compare import files
    from sniper.compare.evaluate import EVALUATION, METRICS, VERSION
    from sniper.training import checkpoint
    from sniper.training.config import dump, from_dict
    from sniper.tts.files import sealed

    folder = options.output / "runs" / result["arm"] / f"seed-{result['seed']}"
    config = from_dict({**result["config"], "output": str(folder)})
    history, before = [], None
    for row in result["history"]:
        rate = rates.at(config, row["sparsity"])
        spent = {"seconds": row["frames"] / rate, "save_seconds": None, "valid_seconds": None}
        changes = row["sparsity"] != before and before is not None
        change = rates.at(config, row["sparsity"], "change_seconds") if changes else 0.0
        spent |= {"frames_per_second": rate, "change_seconds": change}
        # Beside the loss of the average that of the weights themselves, which no run of
        # `sniper.train` notes.
        within = {"within": [pair[:2] for pair in row["within"]]} if "within" in row else {}
        history.append({**row, **spent, **within})
        before = row["sparsity"]
    score = rates.at(config, result["history"][0]["sparsity"], "score_seconds")
    losses = [row["valid"]["total"] for row in history]
    progress = {"epoch": len(history), "batch": 0, "update": result["update"], "history": history}
    progress |= {"best_loss": min(losses), "score_seconds": score}
    meta = {"config": config.to_dict(), "progress": progress}
    if not checkpoint.exists(folder):
        checkpoint.save(folder, result["update"], {}, {}, meta, best=True)
    else:
        checkpoint.write_meta(checkpoint.find(folder), {**meta, "format": checkpoint.FORMAT})
    files.write_text(folder / "run.yaml", dump(config))
    told = {"status": "trained", "message": "", "spans": []}
    if result["status"] != "trained":
        told |= {"status": "diverged", "message": result["status"]}
    # Apart from the machine of the seconds and its commit: times compare though losses come from
    # several devices.
    losses = f"{result['device']} ({config.train.precision})"
    told |= {"machine": {**machine, "losses": losses}}
    told["wall_seconds"] = score + sum(r["seconds"] + r["change_seconds"] for r in history)
    files.write_json(folder / "result.json", told)
    sound = {} if truth is None else listen(path.with_suffix(".npz"), truth)
    parts = {}
    for which, epoch in (("final", len(history)), ("best", result["best_epoch"])):
        metrics = {metric: result["metrics"][which][metric] for metric in METRICS}
        errors = None
        if which == "final" and sound:
            errors = sound.pop("word_errors", None)
            metrics |= sound
        part = {"step": which, "epoch": epoch, "metrics": metrics, "word_errors": errors}
        parts[which] = part
    evaluation = {"version": VERSION, "vocoder": None, "ids": result["ids"], "checkpoints": parts}
    evaluation["layers"] = result["layers"]
    plain = json.loads(files.dumps(evaluation))
    files.write_json(folder / EVALUATION, sealed(plain, EVALUATION, folder, []))
    print(folder, flush=True)


def listen(path: Path, truth: Any) -> dict[str, list[float]]:
    """F0 and word errors of spoken mels that were kept; empty where none were."""
    from sniper.compare.distances import mel_cepstral_distortion
    from sniper.compare.evaluate import measure_sound

    cache = path.with_suffix(SOUND)
    if cache.exists():
        return json.loads(cache.read_text())
    if not path.exists():
        return {}
    mels, features = np.load(path), truth.dataset.info.features
    rows = []
    for index in range(len(truth.f0)):
        small = np.cumsum(mels[f"mel-{index}"], axis=0, dtype=np.uint8)
        mel = (small.astype(np.float32) - 200) * MEL_STEP
        _, way = mel_cepstral_distortion(truth.mel(index), mel, features)
        rows.append(measure_sound(truth, index, mel, way))
    found = {key: [row[key] for row in rows] for key in rows[0]}
    cache.write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    options = parser().parse_args()
    if options.what == "train" and options.device == "cuda":
        os.environ.setdefault("SNIPER_SELF_CHECK", "skip")  # no kernel of ours multiplies there
    sys.exit({"train": train, "seconds": seconds, "assemble": assemble}[options.what](options))
