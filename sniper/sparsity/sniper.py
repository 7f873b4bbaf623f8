# SPDX-License-Identifier: Apache-2.0
"""SNIPER in a plain training loop: score once, then lower the sparsity step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sniper.layers import sparsify
from sniper.layers.masked import check_block_size
from sniper.ops.rebuild import match_weight
from sniper.sparsity import distributed
from sniper.sparsity.blocks import pool
from sniper.sparsity.lr_scale import LrScale
from sniper.sparsity.masking import Fixed, Following, MaskStages, nested_masks
from sniper.sparsity.moments import as_list, match_memory, moved_with, prime
from sniper.sparsity.schedule import SparsitySchedule, check_sparsity
from sniper.sparsity.scoring import EXCLUDE, prunable_parameters, summed_gradients
from sniper.sparsity.state import STATE_VERSION, check_state, pack, unpack
from sniper.sparsity.targets import BlockTargets, ElementTargets


class Sniper:
    """Trains `model` sparse first and dense at the end.

        sniper = Sniper(model, {0: 0.8, 5: 0.4, 10: 0.2, 20: 0.0})
        sniper.score(batches, loss_fn)
        optimizer = torch.optim.Adam(sniper.param_groups(lr=1e-3))
        for epoch in range(epochs):
            sniper.step(epoch, optimizer)
            ...  # an ordinary epoch

    Args:
        model: any module on one device. In block mode its eligible layers become block-sparse at
            once, in place.
        schedule: a `SparsitySchedule` or `{epoch: sparsity}`.
        block_size: edge of the blocks that are kept or pruned as a whole, which is what makes
            training faster; None masks single weights, as the paper does.
        exclude: parameters whose name contains one of these strings are never pruned.
        max_param_sparsity: no parameter is made sparser than this. What it saves is not pruned
            elsewhere, so a model may end up less sparse than the schedule says.
        spread: in [0, 1], in place of that cap: no parameter is made sparser than
            `sparsity + spread * (1 - sparsity)` at each stage, and the threshold is raised until
            the model is as sparse as the schedule says (`sniper.sparsity.masking.Following`).
        restore_init: newly active weights take their initial values; otherwise they start at 0.
        prime_moments: newly active weights start with the mean of their parameter's second moments
            in Adam times this: with 1 they make steps like the others', with 16 of a quarter of
            that at first. With 0 their moments start at 0, and their first steps are about three
            times too long.
        scale_lr: multiply each parameter's learning rate by `min(max_lr_scale, 1 / density)`, on
            top of any scheduler.
        max_lr_scale: the most that `scale_lr` multiplies by.
        paper_exact: zero pruned weights at each forward and leave their gradients alone, as the
            authors' code does, so that Adam's moments of pruned weights move; needs
            `block_size=None`.

    Raises:
        ValueError: bad values, a model on two devices, a block size that fits no layer.

    Source: arXiv 2211.07283.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: SparsitySchedule | Mapping[int, float],
        *,
        block_size: int | None = 64,
        exclude: Sequence[str] = EXCLUDE,
        max_param_sparsity: float = 0.75,
        spread: float | None = None,
        restore_init: bool = True,
        prime_moments: float = 0.0,
        scale_lr: bool = True,
        max_lr_scale: float = 10.0,
        paper_exact: bool = False,
    ):
        self.model = model
        self.schedule = SparsitySchedule(schedule)
        self.block_size = None if block_size is None else check_block_size(block_size)
        self.exclude = exclude
        self.max_param_sparsity = check_sparsity(max_param_sparsity, "max_param_sparsity")
        self.spread = None if spread is None else check_sparsity(spread, "spread")
        self.restore_init = restore_init
        self.prime_moments = prime_moments
        self.scale_lr = scale_lr
        self.max_lr_scale = max_lr_scale
        self.paper_exact = paper_exact
        if not 0 <= prime_moments < math.inf:
            raise ValueError(f"prime_moments: expected 0 or more, got {prime_moments}")
        if not max_lr_scale >= 1:
            raise ValueError(f"max_lr_scale: expected 1 or more, got {max_lr_scale}")
        if paper_exact and block_size is not None:
            raise ValueError(
                f"paper_exact masks single weights: expected block_size=None, got {block_size}"
            )
        params = prunable_parameters(model, exclude)
        if self.block_size is None:
            self._targets = ElementTargets(model, params, mask_gradients=not paper_exact)
        else:
            sparsify(model, self.block_size, exclude=exclude)
            self._targets = BlockTargets(model, params)
        self._plan: MaskStages | None = None
        self._init: dict[str, Tensor] = {}
        self._lr_scale = LrScale()
        self.sparsity: float | None = None

    def score(
        self, batches: Iterable[Any], loss_fn: Callable[[nn.Module, Any], Tensor]
    ) -> dict[str, Tensor]:
        """Scores all weights at their present values and derives the masks of every scheduled
        sparsity.

        Call it once, before training; the model is left as it was. Where several processes train
        together, each scores batches of its own, and their gradients add up.

        Args:
            batches: what `loss_fn` takes; iterated once.
            loss_fn: `(model, batch) -> scalar loss`.

        Returns:
            The saliencies that decide, by the names of the masked parameters: of each weight, or
            with `block_size` of each block, summed over its weights (`sniper.saliency` gives those
            of single weights).

        Raises:
            ValueError: masks are in force already, or as `sniper.saliency` says.
        """
        if self.sparsity is not None:
            raise ValueError(
                f"score: expected a model that is not masked yet, got sparsity {self.sparsity:g}"
            )
        params = self._targets.parameters
        with (
            summed_gradients(self.model, batches, loss_fn, params, over_ranks=True) as gradients,
            torch.no_grad(),
        ):
            if self.block_size is None:
                scores = {n: (gradients[n] * p).abs_() for n, p in params.items()}
            else:
                scores = {n: pool(p, gradients[n], self.block_size) for n, p in params.items()}
        cap = Fixed(self.max_param_sparsity) if self.spread is None else Following(self.spread)
        self._plan = nested_masks(scores, self.schedule.sparsities, cap, not self.paper_exact)
        if self.restore_init:
            self._init = {n: p.detach().clone() for n, p in params.items()}
        return scores

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: what is masked, and the rest; both at `lr`.

        The factors of `scale_lr` need no groups: they act during `optimizer.step()`, whatever the
        groups.
        """
        masked = {id(p) for p in self._targets.parameters.values()}
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        groups = {
            "masked": [p for p in trainable if id(p) in masked],
            "dense": [p for p in trainable if id(p) not in masked],
        }
        return [{"params": ps, "lr": lr, "name": name} for name, ps in groups.items() if ps]

    def step(self, epoch: float, optimizer: Optimizer | Iterable[Optimizer] | None = None) -> float:
        """Call at the start of every epoch: puts the scheduled masks on when they change.

        Args:
            epoch: counted from 0.
            optimizer: the optimizer, or several, of the model; needed for `scale_lr`.

        Returns:
            The sparsity in force.

        Raises:
            ValueError: not scored yet, or an epoch with a higher sparsity than the present one.
        """
        optimizers = as_list(optimizer)
        sparsity = self.schedule.sparsity_at(epoch)
        if sparsity != self.sparsity:
            self._change(epoch, sparsity, optimizers)
        for each in optimizers:
            self._lr_scale.attach(each)
            match_memory(each, self._targets.parameters.values())
        return sparsity

    def _change(self, epoch: float, sparsity: float, optimizers: list[Optimizer]) -> None:
        if self.sparsity is not None and sparsity > self.sparsity:
            raise ValueError(
                f"epoch {epoch}: sparsity must not rise, got {self.sparsity:g} then {sparsity:g}"
            )
        if self._plan is not None:
            self._apply(sparsity, optimizers)
        elif sparsity > 0:
            raise ValueError("step: expected a scored model, call score(batches, loss_fn) first")
        self.sparsity = sparsity
        if sparsity == self.schedule.sparsities[-1]:
            self._init.clear()  # nothing becomes active any more

    @property
    def scored(self) -> bool:
        """Whether masks were derived, by `score` or from a saved state."""
        return self._plan is not None

    def zero_pruned(self) -> None:
        """Zeroes pruned weights, before they are saved say: with `paper_exact` an update moves them
        and the next forward would zero them.
        """
        if self.paper_exact:
            self._targets.zero_pruned()

    def densities(self) -> dict[str, float]:
        """Share of active weights by parameter name, in [0, 1]."""
        return {name: self._targets.density(name) for name in self._targets.parameters}

    def lr_scales(self) -> dict[str, float]:
        """The present factor on each masked parameter's learning rate."""
        if not self.scale_lr:
            return dict.fromkeys(self._targets.parameters, 1.0)
        # A parameter without any active weight has nothing to scale.
        return {n: min(self.max_lr_scale, 1 / d) if d else 1.0 for n, d in self.densities().items()}

    @torch.no_grad()
    def _apply(self, sparsity: float, optimizers: list[Optimizer]) -> None:
        targets, masks = self._targets, self._plan.masks[sparsity]
        first = [name for name in targets.parameters if not targets.has_mask(name)]
        before = {}
        if self.prime_moments and optimizers:
            before = {name: targets.get_mask(name) for name in targets.parameters}
        targets.change_masks(masks, self._plan.counts[sparsity], self._init)
        for name, mask in before.items():
            if mask is not None:
                newly = targets.expand(name, masks[name].to(mask.device) & ~mask)
                p, mask = targets.parameters[name], targets.expand(name, mask)
                prime(optimizers, p, mask, newly, self.prime_moments)
        for name in first:
            if name in self._init:  # once, or every change would do it
                self._init[name] = match_weight(self._init[name], targets.parameters[name])
        if distributed.several():
            self._compare_ranks(sparsity)
        for name in first if not self.paper_exact else ():
            p = targets.parameters[name]
            moved = moved_with(optimizers, p)
            if moved:
                mask = targets.expand(name, masks[name].to(p.device))
                for value in moved:
                    value.masked_fill_(~mask, 0)
        self._set_lr_scales()

    def _compare_ranks(self, sparsity: float) -> None:
        """Stops where processes that train together would skip different weights."""
        targets = self._targets
        value = distributed.checksum({name: targets.state(name) for name in targets.parameters})
        device = next(iter(targets.parameters.values())).device
        distributed.check_same(f"masks of sparsity {sparsity:g}", value, device)

    def _set_lr_scales(self) -> None:
        scales = self.lr_scales()
        self._lr_scale.set({p: scales[n] for n, p in self._targets.parameters.items()})

    def state_dict(self) -> dict[str, Any]:
        """Masks of all stages as packed bits, the position in the schedule, and initial values
        still to be restored.

        Only tensors, numbers, strings and dictionaries: `torch.load(weights_only=True)` reads it.
        """
        shapes = {name: list(p.shape) for name, p in self._targets.parameters.items()}
        return {
            "version": STATE_VERSION,
            "block_size": self.block_size,
            "sparsity": self.sparsity,
            "shapes": shapes,
            "masks": None if self._plan is None else pack(self._plan.masks),
            "init": dict(self._init),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state, also one of another block size or device; load the model's
        weights first.

        Raises:
            ValueError: masks are in force already, another format version, other parameters, or no
                masks for a sparsity of the schedule.
        """
        if self.sparsity is not None:
            raise ValueError(
                "sniper state: expected a Sniper without masks in force, got one at sparsity "
                f"{self.sparsity:g}: make a new model and Sniper"
            )
        params = self._targets.parameters
        check_state(state, {n: tuple(p.shape) for n, p in params.items()}, self.schedule)
        device = next(iter(params.values())).device
        self._init = (
            {n: t.to(device) for n, t in state["init"].items()} if self.restore_init else {}
        )
        self._plan = None
        if state["masks"] is None:
            return
        shapes = {n: p.shape for n, p in params.items()}
        masks, added = unpack(state, self.block_size, shapes, device)
        self._plan = MaskStages.count(masks)
        if state["sparsity"] is None:
            return
        self._apply(state["sparsity"], [])
        for name, newly in added.get(state["sparsity"], {}).items():
            # Blocks of another size cover weights that were pruned when the state was saved.
            if name in self._init:
                params[name].data.copy_(torch.where(newly, self._init[name], params[name].data))
        self.sparsity = state["sparsity"]
