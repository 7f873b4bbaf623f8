# SPDX-License-Identifier: Apache-2.0
"""Several processes that train together, as torchrun starts them, on one machine and without it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sniper.training.progress import Interrupted, Observer, Progress
from sniper.training.ranks import Ranks, joined
from sniper.training.trainer import Trainer
from sniper.tts.corpus.dataset import FeatureDataset


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun puts into the environment."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def together(rank: int, size: int, port: int) -> Iterator[Ranks]:
    """The ranks, connected, in processes that may form others later."""
    os.environ.update(environment(rank, size, port))
    with joined(lambda error: (f"{type(error).__name__}: {error}", 1)) as ranks:
        ranks.connect(torch.device("cpu"), 1.0)
        yield ranks


class Recorder(Observer):
    """Keeps the losses of every update, and may ask to stop after some."""

    def __init__(self, stop_at: int | None = None):
        self.losses: list[float] = []
        self.stop_at, self.trainer = stop_at, None

    def updated(self, progress: Progress, values: dict[str, torch.Tensor]) -> None:
        self.losses.append(float(values["total"]))
        if progress.update == self.stop_at:
            self.trainer.stop = True


def train(config: Any, ranks: Ranks, stop_at: int | None = None) -> tuple[Trainer, list[float]]:
    """Takes up the run, trains it up to an update or its end; gives the losses of its updates."""
    torch.set_num_threads(1)
    data = config.data.root
    train, valid = (FeatureDataset(f"{data}/{s}.safetensors") for s in ("train", "valid"))
    observer = Recorder(stop_at)
    trainer = Trainer(config, train, valid, train.info, observer, ranks=ranks)
    observer.trainer = trainer
    trainer.resume()
    try:
        trainer.fit()
    except Interrupted:
        assert stop_at is not None
    return trainer, observer.losses
