# SPDX-License-Identifier: Apache-2.0
"""SNIPER inside Lightning's `Trainer`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import CombinedLoader
except ImportError as missing:
    try:  # the same code under its older name, with classes of its own
        from pytorch_lightning import Callback, LightningModule, Trainer
        from pytorch_lightning.utilities import CombinedLoader
    except ImportError:
        raise ImportError(
            f"sniper.integrations.lightning: {missing}: pip install 'sniper-tts[lightning]'"
        ) from missing

from sniper.integrations.callback import SniperSettings, refuse
from sniper.sparsity.distributed import several, smallest

__all__ = ["SniperCallback"]

_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


class SniperCallback(SniperSettings, Callback):  # pyright: ignore[reportGeneralTypeIssues]
    """Scores before training, puts the scheduled masks on at every epoch, resumes.

        Trainer(callbacks=[SniperCallback({0: 0.8, 5: 0.0})]).fit(module, loader)

    The masks and the position in the schedule lie in Lightning's own checkpoints, so
    `fit(ckpt_path=...)` goes on where it was.

    Args:
        schedule, score_batches, loss_fn, exchange, options: see `SniperSettings`. Without
            `loss_fn` the loss is what `training_step` returns; `self.log` is silent meanwhile.

    Raises:
        TypeError: an option that `Sniper` does not have.
        ValueError: settings that cannot be; when fitting begins: a strategy that shards parameters,
            manual optimization without `loss_fn`, a module with nothing to prune or trained further
            in the schedule already, a checkpoint without this callback, `exchange` with a strategy
            that is not DDP or has a communication hook of its own.
    """

    def __init__(self, schedule, **settings: Any):
        super().__init__(schedule, **settings)
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here the weights of a checkpoint are loaded, and those of the optimizers not yet.
        strategy = type(trainer.strategy).__name__
        # By name: importing those strategies would pull in libraries that few have installed.
        if any(word in strategy for word in _SHARDED):
            raise refuse(strategy)
        if self.loss_fn is None and not pl_module.automatic_optimization:
            raise ValueError(
                "SniperCallback: expected loss_fn=(module, batch) -> loss where the optimization "
                "is manual, got None"
            )
        self.attach_to(pl_module)
        if self._restored is not None:
            self.attached.load_state_dict(self._restored)
            self._restored = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.attached.scored:
            # A checkpoint of before the first step is a model to score: Lightning's finders of a
            # learning rate or batch size go back to one.
            if trainer.ckpt_path is not None and trainer.global_step > 0:
                raise ValueError(
                    f"SniperCallback: expected a checkpoint that was written with it, got "
                    f"{trainer.ckpt_path}, which has no masks"
                )
            batches = islice(_batches(trainer), self.score_batches)
            with _silent(pl_module):
                if self.loss_fn is not None:
                    self.attached.score(batches, self.loss_fn)
                else:
                    steps = _Scoring(trainer)
                    self.attached.score(steps.checked(batches), cast(Any, steps))
        self.check_start(trainer.current_epoch)
        self.compress(trainer.strategy.model)
        # A run that is resumed in the middle of an epoch has no start of an epoch.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attached.step(trainer.current_epoch, trainer.optimizers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.warn_at_end()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.sniper is not None:
            self.attached.zero_pruned()  # the checkpoint holds the same memory

    def state_dict(self) -> dict[str, Any]:
        return {} if self.sniper is None else self.attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None


class _Scoring:
    """The loss of `training_step`, in the precision of the run; 0 where that returns None, by which
    Lightning skips a batch, in a single process.
    """

    def __init__(self, trainer: Trainer):
        self._trainer, self._count, self._skipped = trainer, 0, 0

    def checked(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, and an error behind them if all of them were skipped; with several processes
        if one of them was.
        """
        yield from batches
        if several():
            # On all alike, or those without an error would wait for this one.
            if smallest(-self._skipped, self._trainer.lightning_module.device) < 0:
                raise ValueError(
                    "SniperCallback: expected training_step to return a loss for every batch on "
                    "every rank, got None for some: with several processes Lightning skips none"
                )
        elif self._skipped and self._skipped == self._count:
            raise self._no_loss(None)

    @staticmethod
    def _no_loss(output: Any) -> ValueError:
        return ValueError(
            "SniperCallback: expected training_step to return a loss, got "
            f"{type(output).__name__}: return one or pass loss_fn=(module, batch) -> loss"
        )

    def __call__(self, module: LightningModule, batch: Any) -> Tensor:
        step, index = module.training_step, self._count
        self._count += 1
        taken = inspect.signature(step).parameters.values()  # a step may take the batch alone
        # Lightning itself decides so whether to pass the index.
        takes_index = len(taken) > 1 or any(p.kind is p.VAR_POSITIONAL for p in taken)
        # Scores of a bf16 run come from bf16 gradients, those that training will see.
        with self._trainer.precision_plugin.train_step_context():
            output = step(batch, index) if takes_index else step(batch)
        if output is None:
            self._skipped += 1
            return torch.zeros((), device=module.device, requires_grad=True)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise self._no_loss(output)
        return loss


def _batches(trainer: Trainer) -> Iterator[Any]:
    """Training batches as `training_step` gets them."""
    known = trainer.fit_loop._combined_loader
    mode: Any = "max_size_cycle" if known is None else known._mode
    for batch, _, _ in CombinedLoader(trainer.train_dataloader, mode):
        batch = trainer.precision_plugin.convert_input(batch)
        # Of the module or its data module, as the loop itself does.
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch)


@contextlib.contextmanager
def _silent(module: nn.Module) -> Iterator[None]:
    """Scoring is no training: nothing of it is logged."""
    names = ("log", "log_dict")
    for name in names:
        setattr(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            delattr(module, name)
