# SPDX-License-Identifier: Apache-2.0
"""SNIPER inside Hugging Face's `Trainer`."""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

try:
    from accelerate.utils import send_to_device
    from transformers import Trainer, TrainerCallback
    from transformers.training_args import ParallelMode
except ImportError as error:
    raise ImportError(
        f"sniper.integrations.huggingface: {error}: pip install 'sniper-tts[huggingface]'"
    ) from error

from sniper.integrations.callback import SniperSettings, refuse
from sniper.layers.ddp_buckets import find_ddp

__all__ = ["SniperCallback"]

STATE_FILE = "sniper.pt"  # beside the Trainer's own files of a checkpoint


class SniperCallback(SniperSettings, TrainerCallback):
    """Scores before training, puts the scheduled masks on at every epoch, resumes.

        Trainer(model, args, train_dataset=data, callbacks=[SniperCallback({0: 0.8, 5: 0.0})])

    Each checkpoint gets a file `sniper.pt`; `train(resume_from_checkpoint=...)` finds it in
    `args.output_dir`, or where `args.resume_from_checkpoint` or `resume_from` says.

    Args:
        schedule, score_batches, loss_fn, exchange, options: see `SniperSettings`. Without
            `loss_fn` the loss is the Trainer's own, where it has one (`compute_loss_func`, an
            overridden `compute_loss`, label smoothing), else the one in the model's output.
        resume_from: folder of the checkpoint that is resumed, where it lies outside
            `args.output_dir`.

    Raises:
        TypeError: an option that `Sniper` does not have.
        ValueError: settings that cannot be; when training begins: FSDP, DeepSpeed or DataParallel,
            a checkpoint without `sniper.pt`, a model with nothing to prune, without a loss, or
            trained further in the schedule already, `exchange` where DDP has another communication
            hook.
    """

    def __init__(self, schedule, *, resume_from: str | Path | None = None, **settings: Any):
        super().__init__(schedule, **settings)
        if resume_from is not None and not isinstance(resume_from, (str, Path)):
            raise ValueError(f"resume_from: expected a folder or None, got {resume_from!r}")
        self.resume_from = resume_from
        self._epoch = 0

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        for kind in ("fsdp", "deepspeed"):
            if getattr(args, kind, None):
                raise refuse(kind)
        if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:  # several GPUs, one process
            raise ValueError(
                f"SniperCallback: expected one process a GPU (torchrun), got DataParallel over "
                f"{args.n_gpu}, which copies the model at every step"
            )
        if model is None or train_dataloader is None:
            raise ValueError(
                "SniperCallback: expected a model and its data, got none from the Trainer"
            )
        new = self.attach_to(model)
        if new and _in_the_order_of_shapes not in model._state_dict_hooks.values():
            # For good: `save_model` may be called long after training.
            model.register_state_dict_post_hook(_in_the_order_of_shapes)
        self._epoch = _first_epoch(args, state, train_dataloader)
        if state.global_step > 0:
            self.attached.load_state_dict(self._saved(args, state))
        elif not self.attached.scored:  # nor by an earlier call, in which that failed
            model.train()  # as the Trainer does before each step
            batches = _batches(train_dataloader, args.device)
            loss_fn = self.loss_fn or _trainers_loss(args.device) or _models_loss
            self.attached.score(islice(batches, self.score_batches), loss_fn)
        self.check_start(self._epoch, resumed=state.global_step > 0)
        if self.exchange is not None and args.parallel_mode == ParallelMode.DISTRIBUTED:
            self.compress(_ddp_around(model))

    def on_epoch_begin(self, args, state, control, optimizer=None, **kwargs):
        self.attached.step(self._epoch, optimizer)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        # What the Trainer counts rules, whatever the data loader says of its length.
        epoch = math.ceil(state.epoch - 1e-6) - 1
        if epoch > self._epoch:
            self._epoch = epoch
            self.attached.step(epoch, optimizer)
        if control.should_save:
            self.attached.zero_pruned()

    def on_epoch_end(self, args, state, control, **kwargs):
        self._epoch += 1
        self.attached.zero_pruned()

    def on_train_end(self, args, state, control, **kwargs):
        self.warn_at_end()

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = _folder(args, state) / STATE_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            torch.save(self.attached.state_dict(), temporary)
            # A kill in the middle leaves the former file or the new one, never half of one.
            os.replace(temporary, path)

    def _saved(self, args: Any, state: Any) -> dict[str, Any]:
        there = self.resume_from or args.resume_from_checkpoint
        folder = Path(there) if isinstance(there, (str, Path)) else _folder(args, state)
        path = folder / STATE_FILE
        if not path.exists():
            raise ValueError(
                f"SniperCallback: expected {path} to resume from step {state.global_step}, found "
                "none: resume a checkpoint that was written with this callback, and name its "
                "folder as resume_from if it lies elsewhere"
            )
        return torch.load(path, weights_only=True, map_location="cpu")


def _folder(args: Any, state: Any) -> Path:
    """Where the Trainer keeps the checkpoint of the present step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _in_the_order_of_shapes(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """A hook on `state_dict()`: masked convolutions lie in memory as `[N, taps, C]`, and the
    Trainer's safetensors takes nothing but the order of the shape. Whoever else asks gets the
    weights themselves, to which it may write.
    """
    if not _trainer_saves():
        return
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dim() == 3:
            state[name] = value.contiguous()  # itself, where that is its order


def _trainer_saves() -> bool:
    """Whether this is called on behalf of `Trainer.save_model`, of which callbacks are told only
    afterwards.
    """
    saving = Trainer.save_model.__code__, Trainer._save.__code__
    return any(frame.f_code in saving for frame in _callers())


def _callers() -> Iterator[FrameType]:
    """Who is being run, from the innermost function outwards: the Trainer shows itself to nobody
    whom it calls.
    """
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _trainers_loss(device: torch.device) -> Callable[[nn.Module, Any], Tensor] | None:
    """What the Trainer that calls computes from the model's output itself; None: it takes the
    model's loss.
    """
    found = (frame.f_locals.get("self") for frame in _callers())
    trainer = next((each for each in found if isinstance(each, Trainer)), None)
    if trainer is None:
        return None
    overridden = getattr(trainer.compute_loss, "__func__", None) is not Trainer.compute_loss
    own = trainer.compute_loss_func is not None or trainer.label_smoother is not None
    if not own and not overridden:
        return None
    take = trainer.get_batch_samples  # earlier versions ask for no device
    where = [device] if "device" in inspect.signature(take).parameters else []

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        _, count = take(iter([batch]), 1, *where)  # by which such a loss may divide
        with trainer.compute_loss_context_manager():
            # A copy: labels are taken out of it.
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=count)
        return cast(Tensor, loss)  # outputs come with it only where they are asked for

    return loss_fn


def _ddp_around(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP that the Trainer made of the model; None if it made none."""
    # The Trainer shows its callbacks the model alone.
    around = find_ddp(list(model.parameters()))
    # An earlier training's may still be there, with the hook it was given then.
    return next((ddp for ddp in around if not ddp._comm_hooks), around[0] if around else None)


def _first_epoch(args: Any, state: Any, loader: Any) -> int:
    """The epoch that the Trainer begins with, as it finds it itself: it counts updates, and where
    the batch size was changed since the checkpoint those are other epochs than `state.epoch`.
    """
    try:
        batches = len(loader)
    except TypeError:  # a stream: the Trainer takes all of it as its first epoch
        return 0
    updates = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return state.global_step // updates


def _batches(loader: DataLoader, device: torch.device) -> Iterator[Any]:
    """The Trainer's batches by a loader of our own: one of Accelerate's that is left before its end
    still counts as being in use.
    """
    # The Trainer's own sampler, so that scoring sees batches of the size that training will see.
    how: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        how = {"batch_size": loader.batch_size}  # a stream has no order to sample
    for batch in DataLoader(loader.dataset, collate_fn=loader.collate_fn, **how):
        yield send_to_device(batch, device)


def _models_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    try:
        inspect.signature(model.forward).bind(**batch)
    except TypeError as error:
        raise ValueError(
            f"SniperCallback: expected a model whose forward takes {', '.join(batch)} and returns "
            f"a loss, got one where that fails ({error}): pass loss_fn=(model, batch) -> loss"
        ) from None
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if loss is None:
        raise ValueError(
            f"SniperCallback: expected a model that returns a loss for {', '.join(batch)}, got "
            "none: pass labels in the data, or loss_fn=(model, batch) -> loss"
        )
    return loss
