# SPDX-License-Identifier: Apache-2.0
"""The training step: gradients of a micro-batch, then the update. On a GPU nothing in it waits."""

from __future__ import annotations

import contextlib
import resource
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sniper import _C
from sniper.layers.masked import BlockMaskedLayer, versions_of
from sniper.ops import dispatch, gradients, selfcheck, timings
from sniper.ops.aside import weight_gradients_aside
from sniper.ops.backends.triton.elementwise import ELEMENTWISE_BLOCK
from sniper.ops.dropout import seeds_together
from sniper.optim import Adam
from sniper.training.batch_norm import absent_loss, statistics_apart
from sniper.training.graphs import CudaRecorder, NotRecorded, Recorder, StepGraphs, Values
from sniper.training.settings import ConfigError
from sniper.training.together import gradients_added, gradients_laid, watched, weights_cast
from sniper.tts.corpus.batch import Batch
from sniper.tts.model.fastspeech2 import FastSpeech2


def pick_recorder(device: torch.device, cuda_graphs: str) -> Recorder | None:
    """What records the step as graphs, or None where it is launched kernel by kernel.

    Args:
        cuda_graphs: `auto`, `on` or `off`, as in `TrainConfig`.

    Raises:
        ConfigError: `on`, for a CPU.
    """
    if cuda_graphs == "on" and device.type != "cuda":
        raise ConfigError("train.cuda_graphs: on expects a CUDA device, got a CPU; use auto or off")
    return CudaRecorder(device) if cuda_graphs != "off" and device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has taken of a GPU, since a step was recorded if one was, or this
    process of the main memory.
    """
    if device.type == "cuda":
        # Reserved, not allocated: what graphs work in is not given back between their runs.
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def noam(
    optimizer: torch.optim.Optimizer, d_model: int, warmup: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """`lr * d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)` at update s, counted from 1.

    Source: Attention Is All You Need, arXiv 1706.03762, eq. 3.
    """

    def factor(done: int) -> float:
        s = done + 1
        return d_model**-0.5 * min(s**-0.5, s * warmup**-1.5)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class TrainingStep:
    """Trains one model, one update after the other.

    Args:
        model: on its device, in training mode while it is trained.
        optimizer: of the model's parameters.
        precision: `bf16` (autocast), or `fp32` or `tf32` as torch is set.
        grad_clip: largest gradient norm; 0: no clipping.
        stage: the sparsity in force, or anything else that changes with the masks.
        recorder: records gradients as graphs, one a batch shape; None: none are recorded.
        must_record: whether a recording that fails is an error; otherwise it is one warning, and
            the step goes on without graphs.
    """

    def __init__(
        self,
        model: FastSpeech2,
        optimizer: torch.optim.Optimizer,
        precision: str = "fp32",
        grad_clip: float = 0.0,
        stage: Callable[[], object] = lambda: None,
        recorder: Recorder | None = None,
        must_record: bool = False,
    ):
        self.model, self.optimizer = model, optimizer
        self._bf16 = precision == "bf16"
        # Clipping at infinity still gives the norm, which is checked for NaN.
        self._limit = grad_clip or float("inf")
        self.device = next(model.parameters()).device
        self._stage = stage
        self._must_record, self._may_record = must_record, False
        self.graphs: StepGraphs | None = None
        if recorder is not None:
            self.graphs = StepGraphs(self._gradients, self._undone, self._version, recorder)

    def loss(self, batch: Batch) -> tuple[Tensor, Values]:
        """Total and terms of a batch wherever it lies, in the run's precision."""
        if not len(batch):  # all utterances of the whole batch are on other ranks
            total = absent_loss(self.model)
            return total, dict.fromkeys(self.model.loss_terms, total.detach())
        with self._precision():
            return self.model.loss(batch.to(self.device, non_blocking=True))

    def backward(self, batch: Batch, share: float) -> Values:
        """Adds the gradients of `share` of the batch's loss.

        Returns:
            `total`, the whole loss, and its terms, on the device. Read them or compute with them
            before the next call.

        Raises:
            NotRecorded: it cannot be recorded as a graph, and must be.
        """
        if self.graphs is None or not len(batch):
            return self._gradients(batch, share)
        try:
            self._check_recording()
            return self.graphs(batch, share)
        except NotRecorded as error:
            if self._must_record:
                raise
            warnings.warn(f"training goes on without CUDA graphs: {error}", stacklevel=2)
            self.graphs = None
        return self._gradients(batch, share)

    def _check_recording(self) -> None:
        """Raises NotRecorded where this machine's check has found that replays go wrong."""
        if self._may_record or self.device.type != "cuda":
            return
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        like = next(self.model.parameters()).new_empty(0, dtype=dtype)
        sizes = {layer.block_size for layer in _held_by(self.model)[2]} or {ELEMENTWISE_BLOCK}
        if not all(selfcheck.trusted(like, size, selfcheck.RECORDED) for size in sizes):
            raise NotRecorded(
                f"this GPU's check leaves out what is recorded; {selfcheck.AGAIN}; "
                "train.cuda_graphs=off trains without"
            )
        self._may_record = True

    def clip(self) -> Tensor:
        """Clips the gradients, an optimizer of `sniper.optim` within `update`.

        Returns:
            Their norm before that, on the device.
        """
        if isinstance(self.optimizer, Adam):
            return self.optimizer.clip(self._limit)  # in the visit that updates
        return nn.utils.clip_grad_norm_(self.model.parameters(), self._limit)

    def update(self) -> None:
        """The optimizer's step, and gradients of zero; the learning rate is the caller's."""
        recorded = self.graphs is not None  # graphs write to the gradients' memory
        if isinstance(self.optimizer, Adam):
            self.optimizer.zero_in_place = recorded  # in the visit that updates
        self.optimizer.step()
        if not (recorded and isinstance(self.optimizer, Adam)):
            self.optimizer.zero_grad(set_to_none=not recorded)

    def _gradients(self, batch: Batch, share: float | Tensor) -> Values:
        with self._forward_together():
            total, terms = self.loss(batch)
        # Scaled before backward, not after: gradients of several micro-batches then add up to their
        # mean.
        with self._backward_together():
            (total * share).backward()
        return {"total": total.detach(), **terms}

    @contextlib.contextmanager
    def _forward_together(self) -> Iterator[None]:
        """Around a forward pass that is recorded."""
        if self.graphs is None:
            yield
            return
        cast = weights_cast(self.model, torch.bfloat16) if self._bf16 else contextlib.nullcontext()
        with seeds_together(), cast:
            yield

    @contextlib.contextmanager
    def _backward_together(self) -> Iterator[None]:
        """Around a backward pass that is recorded, where each launch less counts."""
        if self.graphs is None:
            yield
            return
        # Gradients that somebody watches have to be there when they arrive.
        aside = None if watched(self.model) else self.graphs.aside
        with gradients.unlooked(), gradients_added(self.model), weight_gradients_aside(aside):
            yield

    def _version(self) -> object:
        parameters, buffers, layers = _held_by(self.model)
        if any(p.grad is None and p.requires_grad for p in parameters):
            gradients_laid(self.model)  # a graph adds to them
        # A graph reads and writes memory, whatever has become of the tensors that lay there: a
        # gradient that was set to None, a buffer that has grown, a model that was moved.
        places = _C.addresses([*parameters, *(p.grad for p in parameters), *buffers])
        masks = self._stage(), versions_of(layers)
        return masks, dispatch.forced(), timings.generation(), places

    def _undone(self, run: Callable[[], None]) -> None:
        """Runs something and puts back the gradients, buffers and generators."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        tensors = [*grads, *self.model.buffers()]
        before = [t.clone() for t in tensors]
        devices = [self.device] if self.device.type == "cuda" else []
        # Other ranks may have a recording of this shape already, and wait for nobody.
        with torch.random.fork_rng(devices=devices), statistics_apart():
            run()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)

    def _precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)


def _held_by(model: nn.Module) -> tuple[list[nn.Parameter], list[Tensor], list[BlockMaskedLayer]]:
    """A model's parameters, buffers and block-sparse layers; one that is shared may come again."""
    # By the dictionaries of its modules: `parameters()` and its kind make names for everything, and
    # three of them take longer between two replays than all else.
    modules = [model]
    seen = {model}
    for module in modules:
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                modules.append(child)
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    return parameters, buffers, [m for m in modules if isinstance(m, BlockMaskedLayer)]
