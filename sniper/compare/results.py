# SPDX-License-Identifier: Apache-2.0
"""Everything that the runs left behind, as one dictionary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sniper.compare import bootstrap, claims, rates, timing
from sniper.compare.arms import Arm, Matrix
from sniper.compare.evaluate import METRICS, SPOKEN, read_evaluation, read_words
from sniper.compare.matrix import Run, epochs_of
from sniper.compare.worker import of_a_comparison, read_result, status
from sniper.training import checkpoint
from sniper.tts.corpus.dataset import FeatureDataset

CHECKPOINTS = ("final", "best")
# Layers whose masks are drawn.
DRAWN = 4
LARGE = 0.25  # of the blocks of the largest


def collect(
    matrix: Matrix,
    runs: Sequence[Run],
    command: str,
    valid: FeatureDataset,
    truth: Path | None = None,
) -> dict[str, Any]:
    """The report's content; arms without a finished run have none of their own.

    Args:
        runs: as `matrix.plan` lists them.
        command: that was given, exactly.
        valid: the held-out split.
        truth: folder of what is known of the held-out sentences themselves; None: nothing.
    """
    found = {arm.name: [read_run(r) for r in runs if r.arm == arm] for arm in matrix.arms}
    reference = _by_seed(found[matrix.reference])
    arms = [_arm(arm, found[arm.name], reference, matrix) for arm in matrix.arms]
    compared_with = next(arm for arm in arms if arm["name"] == matrix.reference)
    for arm in arms:
        arm["timing"] = asdict(rates.judge(arm, compared_with))
    measured = [e for each in found.values() for r in each if (e := r["evaluation"])]
    sentences = len(measured[0]["ids"]) if measured else 0
    spoken = range(min(SPOKEN, sentences))
    return {
        "name": matrix.name,
        "title": matrix.title,
        "command": command,
        "reference": matrix.reference,
        "seeds": list(matrix.seeds),
        "epochs": epochs_of(runs),
        "speech": valid.info.speech,
        "sentences": sentences,
        "vocoder": measured[0].get("vocoder") if measured else None,
        "spoken": [{"id": valid.ids[i], "text": valid.texts[i]} for i in spoken],
        "machines": _machines(found),
        "drawn": _drawn(arms),
        "words": _words(matrix, found, truth),
        "claims": [claims.judge(claim, found) for claim in matrix.claims],
        "arms": arms,
    }


def read_run(run: Run) -> dict[str, Any]:
    """What one run left: `seed`, `status`, `message`, `history`, seconds, evaluation."""
    result = read_result(run.folder)
    progress: dict[str, Any] = {}
    how, message = status(run.folder) or "not begun", result["message"]
    try:
        if checkpoint.exists(run.folder):
            progress = checkpoint.load_meta(run.folder)["progress"]
    except (checkpoint.CheckpointError, KeyError) as error:
        how, message = "damaged", of_a_comparison(error)  # the others' report does not wait for it
    history = progress.get("history", [])
    if how == "trained" and not progress:
        how, message = "damaged", f"{run.folder} has no checkpoint any more"
    # The run came to its end before, and more epochs are asked for now.
    elif how == "trained" and not run.trained():
        how = "stopped"
    return {
        "seed": run.seed,
        "status": how,
        "message": message,
        "machine": result["machine"],
        "wall_seconds": result["wall_seconds"],
        "spans": result["spans"],
        "history": history,
        "score_seconds": progress.get("score_seconds", 0.0),
        "evaluation": read_evaluation(run.folder) if how == "trained" else None,
    }


def _by_seed(runs: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in runs if run["status"] == "trained"}


def _arm(
    arm: Arm, runs: list[dict[str, Any]], reference: dict[int, dict[str, Any]], matrix: Matrix
) -> dict[str, Any]:
    own = _by_seed(runs)
    is_reference = arm.name == matrix.reference
    # Seed by seed, since runs of one seed share initial weights and order of data; a difference
    # within such a pair has less noise.
    pairs = [(own[seed], reference[seed]) for seed in own if seed in reference]
    # Masks differ by seed, and the pictures show one of them.
    evaluated = next((r["evaluation"] for r in runs if r["evaluation"]), None)
    return {
        "name": arm.name,
        "label": arm.label,
        "note": arm.note,
        "settings": [f"{arm.config}:", *arm.overrides],
        "runs": [shown(run) for run in runs],
        "final_loss": _loss([timing.losses(r["history"])[-1] for r in own.values()]),
        "best_loss": _loss([timing.losses(r["history"]).min() for r in own.values()]),
        "frames_per_second": _mean([_speed(r["history"]) for r in own.values()]),
        "stages": _stages(list(own.values())),
        "accounts": _accounts(list(own.values())),
        "metrics": {
            which: _metrics(own, None if is_reference else reference, which)
            for which in CHECKPOINTS
        },
        "best_epochs": [
            r["evaluation"]["checkpoints"]["best"]["epoch"] for r in own.values() if r["evaluation"]
        ],
        "time_to_loss": _time_to_loss(pairs),
        "sooner": None
        if is_reference or not pairs
        else timing.sooner([(own["history"], theirs["history"]) for own, theirs in pairs]),
        "setbacks": _setbacks(pairs),
        "early": [] if is_reference else _early(pairs),
        "layers": evaluated["layers"] if evaluated else {},
    }


def _loss(values: list[float]) -> dict[str, float | None]:
    mean, sd = mean_sd([float(value) for value in values])
    return {"mean": mean, "sd": sd}


def _speed(history: Sequence[timing.Row]) -> float:
    # All frames over all seconds: a mean of the epochs' rates would count a short epoch as much as
    # a long one.
    return sum(row["frames"] for row in history) / sum(row["seconds"] for row in history)


def shown(run: dict[str, Any]) -> dict[str, Any]:
    """A run as the report draws it."""
    history = run["history"]
    return {
        "seed": run["seed"],
        "status": run["status"],
        "message": run["message"],
        "spans": run["spans"],
        "epoch": [row["epoch"] + 1 for row in history],
        "seconds": timing.seconds(history).round(2).tolist(),
        "sparsity": [row["sparsity"] for row in history],
        "frames_per_second": [round(row["frames_per_second"]) for row in history],
        "loss": [round(row["valid"]["total"], 5) for row in history],
        "terms": {
            term: [round(row["valid"][term], 5) for row in history]
            for term in (history[0]["valid"] if history else {})
            if term != "total"
        },
    }


def _stages(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stages of the schedule with frames/s as mean and standard deviation over seeds."""
    by_run = [timing.stages(run["history"]) for run in runs]
    result = []
    # Only the stages that every seed has reached: a mean beyond would be over fewer seeds.
    for same in zip(*by_run, strict=False):
        rates = [stage["frames_per_second"] for stage in same]
        mean, sd = mean_sd(rates)
        result.append({**same[0], "frames_per_second": mean, "frames_per_second_sd": sd})
    return result


def _accounts(runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Seconds of each kind, means over seeds."""
    each = [
        {**timing.accounts(run["history"], run["score_seconds"]), "wall": run["wall_seconds"]}
        for run in runs
    ]
    keys = timing.accounts([], 0.0).keys() | {"wall"}
    return {key: _mean([account[key] for account in each]) for key in sorted(keys)}


def _metrics(
    own: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]] | None, which: str
) -> dict[str, dict[str, float]]:
    def values(runs: dict[int, dict[str, Any]], metric: str) -> dict[int, np.ndarray]:
        return {
            seed: np.array(run["evaluation"]["checkpoints"][which]["metrics"][metric], dtype=float)
            for seed, run in runs.items()
            if run["evaluation"]
        }

    result = {}
    for metric in METRICS:
        theirs = None if reference is None else values(reference, metric)
        result[metric] = asdict(bootstrap.summarize(values(own, metric), theirs))
    return result


def _time_to_loss(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """By fraction: how many seeds reached the reference's loss, and how much sooner."""
    by_seed = [
        timing.time_to_loss(own["history"], theirs["history"], own["score_seconds"])
        for own, theirs in pairs
    ]
    result = []
    for same in zip(*by_seed, strict=True):
        there = [reached for reached in same if reached.seconds is not None]
        mean, sd = mean_sd([r.speedup for r in there])
        result.append(
            {
                "fraction": same[0].fraction,
                "loss": _mean([r.loss for r in same]),
                "reference_seconds": _mean([r.reference_seconds for r in same]),
                "seconds": _mean([r.seconds for r in there]),
                "seeds": len(same),
                "reached": len(there),
                # A mean over the seeds that got there would flatter those that seldom do.
                "speedup": mean if len(there) == len(same) else None,
                "speedup_sd": sd if len(there) == len(same) else None,
                "speedup_with_extra": _mean([r.speedup_with_extra for r in there])
                if len(there) == len(same)
                else None,
                "by_seed": [r.speedup for r in same],
            }
        )
    return result


def _setbacks(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """By change of the sparsity: the setback over seeds, and what the reference, which changes
    nothing, shows at the same epochs.
    """
    fine = timing.finest([own["history"] for own, _ in pairs])
    pairs = [pair for pair in pairs if pair[0]["history"] in fine]
    by_seed = [
        [
            (row, timing.setback(theirs["history"], row["epoch"]))
            for row in timing.setbacks(own["history"])
            if row["epoch"] < len(theirs["history"])
        ]
        for own, theirs in pairs
    ]
    result = []
    for same in zip(*by_seed, strict=True):
        rows, others = [row for row, _ in same], [other for _, other in same]
        percents = [row["percent"] for row in rows]
        epochs = [row["epochs"] for row in rows]
        mean, sd = mean_sd(percents)
        result.append(
            {
                **{key: rows[0][key] for key in ("epoch", "before", "after")},
                "percent": mean,
                "percent_sd": sd,
                "largest": max(percents),
                "reference_percent": _mean([other["percent"] for other in others]),
                "epochs": _mean(epochs),
                "recovered": sum(value is not None for value in epochs),
                "seeds": len(rows),
            }
        )
    return result


def _words(
    matrix: Matrix, found: dict[str, list[dict[str, Any]]], truth: Path | None
) -> list[dict[str, Any]]:
    """Percent of the words that a recogniser gets wrong: of recordings, of copy synthesis, and of
    each arm's final checkpoint, with the paired difference to the reference; empty where nobody
    listened.
    """
    known = None if truth is None else read_words(truth)
    if known is None:
        return []
    share = 100 / max(float(np.mean(known["words"])), 1e-9)
    heard = {
        name: {
            run["seed"]: share * np.array(errors, dtype=float)
            for run in runs
            if run["evaluation"] and run["evaluation"]["ids"] == known["ids"]
            for errors in [run["evaluation"]["checkpoints"]["final"].get("word_errors")]
            if errors
        }
        for name, runs in found.items()
    }
    result = [
        {
            "name": name,
            **asdict(bootstrap.summarize({0: share * np.array(known[key], dtype=float)})),
        }
        for name, key in (("recordings", "recordings"), ("copy synthesis", "copies"))
    ]
    for arm in matrix.arms:
        own, theirs = heard[arm.name], heard[matrix.reference]
        if own:
            against = None if arm.name == matrix.reference else theirs
            result.append({"name": arm.label, **asdict(bootstrap.summarize(own, against))})
    return result


def _early(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    by_seed = [timing.early_losses(own["history"], theirs["history"]) for own, theirs in pairs]
    result = []
    for same in zip(*by_seed, strict=True):
        row: dict[str, Any] = {"fraction": same[0]["fraction"]}
        for key in ("by_epoch", "by_seconds"):
            values = [each[key] for each in same]
            row[key], row[f"{key}_sd"] = mean_sd(values) if None not in values else (None, None)
        result.append(row)
    return result


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where there are too few."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    # A mean over some of the seeds only would compare with nothing.
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _machines(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The different machines and versions that trained; commits and dates of one are joined, and
    where losses come from that were found elsewhere than the times.
    """
    result: list[dict[str, Any]] = []
    joined = ("commit", "date", "losses")
    for machine in [run["machine"] for runs in found.values() for run in runs if run["machine"]]:
        # A matrix may run for days: two dates are not two machines.
        own = {k: v for k, v in machine.items() if k not in joined}
        same = next((m for m in result if {k: m[k] for k in own} == own), None)
        if same is None:
            same = {**own, **{key: [] for key in joined}}
            result.append(same)
        for key in joined:
            if machine.get(key) and machine[key] not in same[key]:
                same[key].append(machine[key])
    told = [{k: v for k, v in machine.items() if v != []} for machine in result]
    return [{k: ", ".join(v) if k in joined else v for k, v in m.items()} for m in told]


def _drawn(arms: Sequence[dict[str, Any]]) -> list[str]:
    """A few large layers of the first block arm that changes its masks, from one that is pruned
    most, over the stages together, to one that is pruned least.
    """
    blocky = [a for a in arms if any("masks" in layer for layer in a["layers"].values())]
    # Stable: of the arms whose masks change the first stays first.
    blocky.sort(key=lambda a: len(a["stages"]) < 2)
    if not blocky:
        return []
    layers = blocky[0]["layers"]
    sizes = {name: math.prod(layer["blocks"]) for name, layer in layers.items()}
    large = [name for name, size in sizes.items() if size >= LARGE * max(sizes.values())]
    large.sort(key=lambda name: sum(layers[name]["density"].values()))
    if len(large) <= DRAWN:
        return large
    return [large[round(i * (len(large) - 1) / (DRAWN - 1))] for i in range(DRAWN)]
