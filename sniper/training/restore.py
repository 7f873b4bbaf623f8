# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's contents, put back into what is trained, or one line that says why not.

Everything is looked at before it is used: torch takes moments of any shape and a generator's state
of any origin, and says so, if at all, an epoch later.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sniper.sparsity import Sniper
from sniper.training.average import WeightAverage
from sniper.training.checkpoint import Checkpoint, damaged, section
from sniper.training.config import Config, from_dict
from sniper.training.progress import Progress
from sniper.training.ranks import ALONE, Ranks
from sniper.training.settings import ConfigError
from sniper.tts.corpus.dataset import CorpusInfo
from sniper.tts.text.text import LexiconFrontend

# Reading contents of the wrong kind raises any of these.
_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)


def saved_config(saved: Checkpoint) -> Config:
    """The settings that a run was begun with.

    Raises:
        CheckpointError: there are none, or this version does not take them.
    """
    try:
        return from_dict(section(saved, "config"))
    except ConfigError as error:
        raise damaged(saved.path, "meta.json", f"config: {error}") from None


def read_speech(data: dict[str, Any]) -> CorpusInfo:
    """Vocabulary, features and statistics as a checkpoint has them.

    Raises:
        ValueError: they cannot be those of any speech.
    """
    try:
        return CorpusInfo.from_json(data)
    except ValueError as error:
        raise ValueError(f"speech: {error}") from None


def saved_progress(saved: Checkpoint) -> Progress:
    """Where the run stood.

    Raises:
        CheckpointError: a value is not there, or is none that a run can have.
    """
    data, known = section(saved, "progress"), {f.name: str(f.type) for f in fields(Progress)}
    # These five every version has saved; others may be missing, and then have their defaults.
    for name in ("epoch", "batch", "update", "best_loss", "history", *data):
        value = data.get(name)
        good = {
            "int": type(value) is int and value >= 0,
            "float": _is_number(value),
            "dict[str, float]": _are_numbers(value),
            "list[dict[str, Any]]": isinstance(value, list) and all(map(_is_row, value)),
            "list[list[float]]": isinstance(value, list) and all(map(_is_pair, value)),
        }
        if name not in known:
            raise damaged(saved.path, "meta.json", f"progress: {name} is not known")
        if not good[known[name]]:
            raise damaged(saved.path, "meta.json", f"progress: {name} cannot be {value!r:.60}")
    progress = Progress(**data)
    # flat_epochs and the results count on one row an epoch.
    if len(progress.history) != progress.epoch:
        found = f"{len(progress.history)} rows of history after {progress.epoch} epochs"
        raise damaged(saved.path, "meta.json", f"progress: {found}")
    return progress


def dealt_before(saved: Checkpoint, progress: Progress, ranks: int) -> list[tuple[int, int]]:
    """How the running epoch was dealt before so many ranks took it up: numbers of ranks, and how
    many batches were shared by so many; empty where it was theirs from the start.

    Raises:
        CheckpointError: it cannot have been.
    """
    before, dealt = saved.meta.get("ranks", 1), saved.meta.get("dealt", [])
    pairs = [pair for pair in dealt if isinstance(pair, list | tuple) and len(pair) == 2]
    counts = [before, *(value for pair in pairs for value in pair)]
    good = len(pairs) == len(dealt) and all(type(n) is int and n > 0 for n in counts)
    last = progress.batch - sum(batches for _, batches in pairs) if good else -1
    if last < 0:
        raise damaged(saved.path, "meta.json", f"ranks: {before!r:.60}, dealt: {dealt!r:.60}")
    # Stopped before their first batch, the ranks that were there have left nothing of their own.
    if before != ranks and last:
        pairs = [*pairs, (before, last)]
    return [(parts, batches) for parts, batches in pairs]


def _is_number(value: object) -> bool:
    # True is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isnan(value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not all(_is_number(row.get(n)) for n in ("epoch", "sparsity")):
        return False
    losses = [row.get("train"), row.get("valid")]
    return all(map(_are_numbers, losses)) and "total" in row["valid"]


def refuse_other_speech(saved: Checkpoint, info: CorpusInfo, run: object) -> None:
    """Refuses to go on with a corpus that the run was not begun with.

    Raises:
        ConfigError: the vocabulary, the features or the statistics are others.
        CheckpointError: the checkpoint holds none.
    """
    # Through JSON, as the saved values went, which makes lists of tuples.
    there, here = section(saved, "speech"), json.loads(json.dumps(info.to_json()))
    try:
        read_speech(there)
        for part in ("features", "statistics"):
            if there[part].keys() != here[part].keys():
                raise ValueError(f"speech: expected other {part} than {sorted(there[part])!r:.60}")
    except ValueError as error:
        raise damaged(saved.path, "meta.json", str(error)) from None
    for part in ("vocabulary", "features", "statistics", "speakers"):
        if there.get(part) != here.get(part):
            raise ConfigError(
                f"{run} was trained on other speech: the prepared corpus has other "
                f"{part}; use another output=FOLDER, or --fresh to start anew"
            )


def with_saved_words(saved: Checkpoint, info: CorpusInfo) -> CorpusInfo:
    """The corpus' information with the words that the run's lexicon holds besides: they may have
    been added after it was begun.
    """
    there, here = read_speech(section(saved, "speech")).frontend, info.frontend
    if not isinstance(there, LexiconFrontend) or not isinstance(here, LexiconFrontend):
        return info
    # The run's own go first: what was added to it was meant for it.
    return replace(info, frontend=replace(here, lexicon={**here.lexicon, **there.lexicon}))


def restore_weights(saved: Checkpoint, model: nn.Module) -> None:
    """Puts the saved weights into the model.

    Raises:
        CheckpointError: they are of another model.
    """
    own = model.state_dict()
    # load_state_dict would list every difference, on hundreds of lines, and takes another dtype
    # silently.
    for name in sorted({*own, *saved.weights}):
        there, here = saved.weights.get(name), own.get(name)
        if there is None or here is None:
            found = "is missing" if there is None else "is not the model's"
            raise damaged(saved.path, "model.safetensors", f"{name} {found}")
        if there.shape != here.shape or there.dtype != here.dtype:
            found = f"expected {_kind(here)} for {name}, got {_kind(there)}"
            raise damaged(saved.path, "model.safetensors", found)
    model.load_state_dict(saved.weights)


def restore_sniper(saved: Checkpoint, sniper: Sniper, begun: bool, epochs: int) -> None:
    """Puts the saved masks on; the weights come first.

    Args:
        begun: whether the run has made an update, and so has masks.
        epochs: of the run now, by which a schedule of fractions stretches.

    Raises:
        ConfigError: the settings ask for what the saved masks cannot give.
        CheckpointError: they are damaged.
    """
    state = _part(saved, "sniper", dict)
    try:
        masks, present = state["masks"], state["sparsity"]
        if begun and (not isinstance(masks, dict) or present not in masks):
            raise TypeError(f"there are no masks of sparsity {present!r:.60}")
        shapes = {n: p.shape for n, p in sniper.model.named_parameters()}
        for name, values in state["init"].items():
            if values.shape != shapes[name]:
                raise ValueError(f"expected initial values of {name}, got {_kind(values)}")
        sniper.load_state_dict(state)
    except _WRONG as error:
        # The user can change these settings; any other fault means that the file is damaged.
        if isinstance(error, ValueError) and str(error).startswith("schedule:"):
            # The schedule's own entries cannot be others. Of fractions that fell on one epoch the
            # last alone was scored.
            before = saved_config(saved).train.epochs
            raise ConfigError(
                f"train.epochs: with {epochs} epochs the run needs masks that it does not have: "
                f"{str(error).removeprefix('schedule: ')}; it goes on with {before} epochs, as it "
                "was saved, or start anew"
            ) from None
        if isinstance(error, ValueError) and str(error).startswith("block_size:"):
            raise ConfigError(f"sparsity: {error}") from None
        raise damaged(saved.path, "state.pt", f"sniper: {_reason(error)}") from None


def restore_average(saved: Checkpoint, average: WeightAverage) -> None:
    """Puts the trained weights back into the model, and what it held, the saved average, aside;
    weights and masks come first.

    Raises:
        CheckpointError: they are not there, or of another model.
    """
    state = _part(saved, "average", dict)
    try:
        average.load_state_dict(state)
    except _WRONG as error:
        raise damaged(saved.path, "state.pt", f"average: {_reason(error)}") from None


def restore_optimizer(saved: Checkpoint, optimizer: torch.optim.Adam, begun: bool) -> None:
    """Puts moments and learning rate back.

    Args:
        begun: whether the run has made an update, and so has moments.

    Raises:
        CheckpointError: they are of another model, or no moments.
    """
    state = _part(saved, "optimizer", dict)
    own = optimizer.state_dict()["param_groups"]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        if not _are_dicts(state["param_groups"]):
            raise TypeError(f"param_groups cannot be {state['param_groups']!r:.60}")
        for there, here in zip(state["param_groups"], own, strict=True):
            for name in ("params", "lr", "initial_lr", "betas", "eps"):
                if _plain(there[name]) != _plain(here[name]):
                    raise ValueError(f"{name} cannot be {there[name]!r:.60}")
            # Settings that another version of torch knows and this one does not are no damage.
            for name in there.keys() & here.keys():
                # torch's own classes have 0 where others have 0.0.
                numbers = _is_number(there[name]) and _is_number(here[name])
                if not numbers and type(there[name]) is not type(here[name]):
                    raise ValueError(f"{name} cannot be {there[name]!r:.60}")
        moments = state["state"]
        # Moments exist from the first update on; a run may be stopped while it is scored.
        expected = set(range(len(params))) if begun else set()
        if not isinstance(moments, dict) or not _are_dicts(list(moments.values())):
            raise TypeError("expected the moments of each weight by its number")
        if set(moments) != expected:
            raise ValueError(f"expected moments of {len(expected)} weights, got {len(moments)}")
        for index, values in moments.items():
            _check_moments(values, params[index])
        optimizer.load_state_dict(state)
    except _WRONG as error:
        raise damaged(saved.path, "state.pt", f"optimizer: {_reason(error)}") from None


def _are_dicts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _plain(value: Any) -> Any:
    """What must be as it is here: all but the rate's present value, which only must be a number."""
    if isinstance(value, float):
        return float
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _check_moments(values: dict[str, Any], p: Tensor) -> None:
    for name, shape in (("step", ()), ("exp_avg", p.shape), ("exp_avg_sq", p.shape)):
        tensor = values[name]
        if not isinstance(tensor, Tensor) or tensor.shape != torch.Size(shape):
            raise ValueError(f"expected {name} of shape {list(shape)}, got {_kind(tensor)}")
        if not tensor.is_floating_point():
            raise ValueError(f"expected {name} in floating point, got {tensor.dtype}")


def restore_scheduler(
    saved: Checkpoint, scheduler: torch.optim.lr_scheduler.LambdaLR, updates: int
) -> None:
    """Puts the learning rate's schedule to where the run stood, after so many updates.

    Raises:
        CheckpointError: it stood elsewhere, or nowhere.
    """
    state = dict(_part(saved, "scheduler", dict))
    rates = [state.get("base_lrs"), state.get("_last_lr")]
    good = all(isinstance(r, list) and len(r) == 1 and _is_number(r[0]) for r in rates)
    counts = [state.get("last_epoch"), state.get("_step_count")]
    good = good and all(type(count) is int for count in counts) and counts[0] == updates
    lambdas = state.get("lr_lambdas")
    if not good or not isinstance(lambdas, list) or lambdas != [None]:
        raise damaged(saved.path, "state.pt", f"scheduler: it is not that of {updates} updates")
    scheduler.load_state_dict(state)


def seed_rank(seed: int, updates: int, rank: int) -> None:
    """Seeds the generators of a rank, so that dropout differs between ranks and parts of a run;
    those of rank 0 of a new run stay as they are.
    """
    if rank or updates:
        torch.manual_seed(int(np.random.SeedSequence([seed, updates, rank]).generate_state(1)[0]))


def restore_generators(
    saved: Checkpoint, device: torch.device, seed: int = 0, ranks: Ranks = ALONE
) -> None:
    """Puts the random number generators to where they stood; of a rank that was not there, to where
    `seed`, the rank and the updates so far say.

    Raises:
        CheckpointError: the saved states are none.
    """
    state = _part(saved, "rng", Tensor)
    if "cuda_rng" not in saved.state:
        raise damaged(saved.path, "state.pt", "cuda_rng is missing")
    cuda = saved.state["cuda_rng"]
    others = saved.state.get("rng_of_ranks", [(state, cuda)])
    try:
        if ranks.rank >= len(others):
            seed_rank(seed, saved_progress(saved).update, ranks.rank)
            return
        state, cuda = others[ranks.rank]
        if cuda is not None and cuda.dtype != torch.uint8:
            raise TypeError(f"expected bytes for cuda_rng, got {_kind(cuda)}")
        torch.set_rng_state(state)
        if device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
    except _WRONG as error:
        raise damaged(saved.path, "state.pt", f"random generators: {_reason(error)}") from None


def _part(saved: Checkpoint, name: str, kind: type) -> Any:
    value = saved.state.get(name)
    if not isinstance(value, kind):
        found = _kind(value) if name in saved.state else "nothing"
        raise damaged(saved.path, "state.pt", f"expected {kind.__name__} for {name}, got {found}")
    return value


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
    return type(value).__name__


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{text} is missing" if isinstance(error, KeyError) else text
