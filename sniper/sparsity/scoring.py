# SPDX-License-Identifier: Apache-2.0
"""How much the loss depends on each weight at initialisation."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sniper.layers.selection import (
    EXCLUDE,
    check_matched,
    check_module,
    check_patterns,
    check_whole_parameters,
    excluded_by,
    left_out_by_type,
    names_of,
    weight_norm_parts,
)
from sniper.ops.convolution import torchs_convolutions
from sniper.sparsity import distributed


def prunable_parameters(
    model: nn.Module, exclude: Sequence[str] = EXCLUDE
) -> dict[str, nn.Parameter]:
    """The parameters that scoring covers, by name: those that are trainable and real, match no
    pattern of `exclude`, and belong to no normalisation layer, embedding or weight norm.

    Args:
        model: any module.
        exclude: shell patterns of qualified names of parameters or of the modules that hold them; a
            pattern without wildcards matches any name that contains it.

    Raises:
        ValueError: none is left, a pattern that matches nothing, or parameters on several devices.
    """
    check_whole_parameters(check_module(model))
    patterns = check_patterns("exclude", exclude)
    check_matched("exclude", model, patterns)
    left_out = why_left_out(model, patterns)
    params = {name: p for name, p in model.named_parameters() if name not in left_out}
    if not params:
        raise ValueError(
            "model: expected parameters to prune, got none: no trainable parameter is left to "
            f"prune with exclude={patterns} and without normalisation layers, embeddings, "
            "weight norm and complex numbers"
        )
    # One threshold compares all saliencies, so they have to lie in one place.
    devices = sorted({str(p.device) for p in params.values()})
    if len(devices) > 1:
        raise ValueError(
            f"model: expected one on one device, got parameters on {', '.join(devices)}"
        )
    if devices == ["meta"]:
        raise ValueError("model: expected one with values, got one on the meta device")
    return params


def why_left_out(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """Why parameters are never pruned, by name; the others may be.

    Args:
        model: any module.
        patterns: as `prunable_parameters` takes them.
    """
    # By identity: a tied embedding is left out under each of its names.
    kinds, parts = left_out_by_type(model), weight_norm_parts(model)
    found: dict[str, str] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            found[name] = "frozen"
        elif p.is_complex():
            found[name] = "complex weights"
        elif id(p) in kinds:
            found[name] = f"left out by its type: {kinds[id(p)]}"
        elif id(p) in parts:
            found[name] = "a part of weight norm"
        elif (pattern := excluded_by(patterns, names_of(name))) is not None:
            found[name] = f"excluded by {pattern!r}"
    return found


def saliency(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    exclude: Sequence[str] = EXCLUDE,
) -> dict[str, Tensor]:
    """Connection sensitivity: `|w * sum_b dL_b/dw|` for every weight, a signed sum over batches,
    then abs.

    That is `|sum_b dL_b/dm|` at m = 1 with `w * m` in place of w, because w does not change while
    scoring. The model is left as it was: weights, gradients, buffers (BatchNorm statistics),
    training mode, and all random number generators.

    Args:
        model: scored in the mode (train or eval) in which it arrives.
        batches: what `loss_fn` takes; iterated once.
        loss_fn: `(model, batch) -> scalar loss` with a graph.
        exclude: shell patterns of names that are left out (without wildcards: any name that
            contains it); normalisation layers, embeddings and what weight norm makes weights of are
            left out by their type.

    Returns:
        A tensor of each prunable parameter's shape, >= 0, by the parameter's name.

    Raises:
        ValueError: no batches, a loss that is no scalar or has no graph, a saliency that is not
            finite (with the names), parameters on several devices, nothing to prune.

    Source: Lee et al., SNIP, arXiv 1810.02340, eq. 4-5; signed sum over batches as in arXiv
        2211.07283.
    """
    params = prunable_parameters(model, exclude)
    # The sum is signed: batches that pull a weight in opposite directions say that it matters
    # little.
    with summed_gradients(model, batches, loss_fn, params) as gradients, torch.no_grad():
        scores = {name: (gradients[name] * p).abs_() for name, p in params.items()}
    check_saliency(scores)
    return scores


@contextlib.contextmanager
def summed_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    params: dict[str, nn.Parameter],
    over_ranks: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """The sum of the batches' gradients by name, while the `with` block lasts; before and after it
    the model is as it was.

    Args:
        over_ranks: of the batches of all ranks, where several processes train together.

    Raises:
        ValueError: no batches (on any rank), a loss that is no scalar or has no graph.
    """
    # A string is iterable too, letter by letter, and would fail deep inside the user's model.
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes)):
        got = type(batches).__name__
        raise ValueError(f"batches: expected an iterable of batches, got {got}")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn: expected (model, batch) -> scalar loss, got {loss_fn!r}")
    device = next(iter(params.values())).device
    over_ranks = over_ranks and distributed.several()
    # Masks must not depend on what is faster.
    with _left_as_it_was(model, device), torchs_convolutions():
        count = 0
        for batch in batches:
            # Whoever calls from a validation hook is inside no_grad, where no loss would have a
            # graph.
            with torch.enable_grad():
                loss = loss_fn(model, batch)
            _check_loss(loss)
            # Gradients add up in .grad by themselves, batch by batch, which keeps one batch in
            # memory.
            loss.backward()
            count += 1
        # Every rank must learn of it, or the others would wait for this one's gradients.
        if (distributed.smallest(count, device) if over_ranks else count) == 0:
            where = " on every rank" if over_ranks else ""
            raise ValueError(f"batches: expected at least one batch{where} to score on, got none")
        gradients = {
            n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in params.items()
        }
        if over_ranks:
            # Before the sum: ranks whose models differ would add up gradients of different layers,
            # or wait for each other for ever.
            shapes = {name: [torch.tensor(p.shape)] for name, p in params.items()}
            distributed.check_same("parameters to score", distributed.checksum(shapes), device)
            distributed.sum_over_ranks(list(gradients.values()))
        yield gradients


def check_saliency(scores: dict[str, Tensor]) -> None:
    """Raises a ValueError for saliencies that are missing, NaN, infinite, negative or spread over
    devices.
    """
    check_present(scores)
    # NaN compares false with every threshold: its weights would be pruned without a word.
    bad = [name for name, s in scores.items() if s.numel() and not bool(torch.isfinite(s).all())]
    if bad:
        raise ValueError(
            f"saliency: expected finite values, got NaN or infinity in {_some(bad)}: "
            "check the loss on the scoring batches"
        )
    bad = [name for name, s in scores.items() if s.numel() and bool((s < 0).any())]
    if bad:
        raise ValueError(f"saliency: expected values >= 0, got negative ones in {_some(bad)}")


def check_some(scores: Mapping[str, Tensor]) -> None:
    """Raises a ValueError for saliencies that are all zero, by which nothing can be chosen."""
    if not any(bool(s.any()) for s in scores.values()):
        raise ValueError(
            "saliency: expected some values above 0, got zeros alone: check that the loss depends "
            f"on {_some(list(scores))}, and that the batches give it a gradient"
        )


def check_present(scores: dict[str, Tensor]) -> None:
    """Raises a ValueError for saliencies that are missing or spread over devices."""
    if not isinstance(scores, Mapping) or not all(isinstance(s, Tensor) for s in scores.values()):
        raise ValueError(
            "saliency: expected tensors by parameter name, as sniper.saliency gives them, got "
            f"{type(scores).__name__}"
        )
    if not scores or not any(s.numel() for s in scores.values()):
        raise ValueError("saliency: expected at least one value, got none")
    devices = sorted({str(s.device) for s in scores.values()})
    if len(devices) > 1:
        raise ValueError(f"saliency: expected one device, got {', '.join(devices)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn: expected a scalar tensor, got {got}")
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn: expected a loss with a graph, got one that does not require grad"
        )


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts gradients, buffers, modes and generators back, whatever happens inside."""
    # The tensors themselves are kept, not copies: an optimizer or a graph may hold them by address.
    grads = [(p, p.grad) for p in model.parameters()]
    buffers = [
        (m, name, b, b.detach().clone())
        for m in model.modules()
        for name, b in m._buffers.items()
        if b is not None
    ]
    modes = [(m, m.training) for m in model.modules()]
    # Optimizers that step in the backward pass live here: they would train, and clear what is read.
    hooked = [
        (hooks, dict(hooks))
        for p, _ in grads
        if (hooks := getattr(p, "_post_accumulate_grad_hooks", None))
    ]
    # Data augmentation draws from all three; a run must go on as if nobody had scored.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            for p, _ in grads:
                p.grad = None
            for hooks, _ in hooked:
                hooks.clear()
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        with torch.no_grad():
            for m, name, b, value in buffers:
                m._buffers[name] = b  # a forward may have put another tensor there
                if not torch.equal(b, value):  # an expanded buffer cannot be written to
                    b.copy_(value)
        for hooks, those in hooked:
            hooks.update(those)
        for p, grad in grads:
            p.grad = grad
        for m, training in modes:
            m.training = training
