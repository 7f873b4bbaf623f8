# SPDX-License-Identifier: Apache-2.0
"""SNIPER in a plain training loop: score once, then lower the sparsity step by step."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from sniper.layers import SparsifyReport, sparsify
from sniper.layers.masked import check_block_size
from sniper.layers.selection import EXCLUDE, check_patterns, check_whole_parameters
from sniper.ops.layout import BlockLayout
from sniper.ops.memory import give_back_freed_memory
from sniper.ops.rebuild import match_weight
from sniper.sparsity import describe, distributed
from sniper.sparsity.blocks import pool, pool_blocks
from sniper.sparsity.deprecated import accepts_old_names
from sniper.sparsity.growth import GROWTH, grown_masks
from sniper.sparsity.masking import Fixed, Following, MaskStages, nested_masks
from sniper.sparsity.optimizer import (
    LearningRateScale,
    NewWeights,
    RateFactors,
    as_list,
    check_optimizers,
    gradient_and_moments,
    prime,
    start_anew,
)
from sniper.sparsity.schedule import SparsitySchedule, check_sparsity, is_number
from sniper.sparsity.scoring import (
    check_some,
    prunable_parameters,
    summed_gradients,
    why_left_out,
)
from sniper.sparsity.state import STATE_VERSION, check_state, pack, unpack
from sniper.sparsity.targets import BlockTargets, ElementTargets

# Asked and reached sparsity may differ by this much without a word.
TOLERANCE = 0.01

# Who masks a parameter. Targets live as long as their Sniper, or as their hooks on the parameters.
_masked_by = WeakTensorKeyDictionary()


class Sniper:
    """Trains `model` sparse first and dense at the end.

        snip = Sniper(model, {0: 0.8, 5: 0.4, 10: 0.2, 20: 0.0})
        snip.score(batches, loss_fn)
        optimizer = torch.optim.Adam(snip.param_groups(lr=1e-3))
        for epoch in range(epochs):
            snip.step(epoch, optimizer)
            ...  # an ordinary epoch
        print(snip.summary())

    Most defaults did best where they were tried on the demo corpus (`docs/evidence.md`): the cap
    that follows the sparsity, new weights at 0, their small first steps. The factor on the learning
    rate did not: without it a run was no worse. `Sniper.paper` has the paper's settings. Biases are
    masked only where single weights are. Normalisation layers and embeddings are never masked, by
    their type, whatever they are named.

    Args:
        model: any module on one device, without another Sniper. In block mode its eligible layers
            become block-sparse at once, in place.
        schedule: a `SparsitySchedule` or `{epoch: sparsity}`.
        block_size: edge of the blocks that are kept or pruned as a whole, which is what makes
            training faster; None masks single weights, as the paper does.
        exclude: shell patterns of qualified names of parameters or their modules, which are never
            pruned; a pattern without wildcards matches any name that contains it.
        cap: how sparse a single parameter may become: `Following(spread)` or
            `Fixed(max_param_sparsity)`.
        new_weights: how weights start that become active.
        lr_scale: how learning rates grow where weights are pruned; None leaves them alone.
        growth: what comes back when the sparsity is lowered: `score`, by the saliency at
            initialisation, as the paper has it, or `gradient`, what has the largest gradient at
            that moment, for which `step` needs batches.
        prune: False masks nothing and only scales learning rates, as the masks would: a control,
            which tells what the rates do from what the sparsity does.
        paper_exact: zero pruned weights at each forward and leave their gradients alone, as the
            authors' code does, so that Adam's moments of pruned weights move; needs
            `block_size=None`.

    The keywords of earlier versions (`max_param_sparsity`, `spread`, `restore_init`,
    `prime_moments`, `scale_lr`, `max_lr_scale`) are taken with a DeprecationWarning.

    Attributes:
        sparsity: the scheduled sparsity in force; None before the first `step`.
        detached: whether `detach` has ended it.

    Raises:
        ValueError: bad values, a model on two devices or with a Sniper already, a block size that
            fits no layer, a pattern that matches nothing.
        TypeError: a keyword that there is not.

    Source: arXiv 2211.07283.
    """

    @accepts_old_names
    def __init__(
        self,
        model: nn.Module,
        schedule: SparsitySchedule | Mapping[int, float],
        *,
        block_size: int | None = 64,
        exclude: Sequence[str] = EXCLUDE,
        cap: Fixed | Following = Following(0.1),  # noqa: B008 (frozen)
        new_weights: NewWeights = NewWeights(),  # noqa: B008
        lr_scale: LearningRateScale | None = LearningRateScale(),  # noqa: B008
        paper_exact: bool = False,
        growth: str = "score",
        prune: bool = True,
    ):
        ready = isinstance(schedule, SparsitySchedule)
        self.schedule = schedule if ready else SparsitySchedule(schedule)
        self.block_size = None if block_size is None else check_block_size(block_size)
        _check_kind("cap", cap, (Fixed, Following))
        _check_kind("new_weights", new_weights, (NewWeights,))
        _check_kind("lr_scale", lr_scale, (LearningRateScale, type(None)))
        _check_kind("paper_exact", paper_exact, (bool,))
        _check_kind("prune", prune, (bool,))
        if growth not in GROWTH:
            raise ValueError(f"growth: expected one of {', '.join(GROWTH)}, got {growth!r}")
        if paper_exact and block_size is not None:
            raise ValueError(
                f"paper_exact masks single weights: expected block_size=None, got {block_size}"
            )
        exclude = check_patterns("exclude", exclude)
        params = prunable_parameters(model, exclude)
        # Before anything of the model is changed: a refusal leaves it as it came.
        _check_free(params)
        self.model = model
        self.exclude = exclude
        self.cap = cap
        self.new_weights = new_weights
        self.lr_scale = lr_scale
        self.paper_exact = paper_exact
        self.growth, self.prune = growth, prune
        if self.block_size is None:
            self._targets = ElementTargets(model, params, mask_gradients=not paper_exact)
            self._left_out = why_left_out(model, exclude)
        else:
            report = sparsify(model, self.block_size, exclude=exclude)
            self._targets = BlockTargets(model, params)
            self._left_out = _layers_left_out(report, why_left_out(model, exclude))
        self._scheduled: MaskStages | None = None  # the masks of every stage
        self._init: dict[str, Tensor] = {}
        self._left_dense: list[str] = []  # since the model reads these weights itself
        self._rates = RateFactors()
        self._warned: set[str] = set()
        self.mask_block_size = block_size  # that the masks were chosen with
        self.detached = False
        self.sparsity: float | None = None
        self._follow()

    @classmethod
    def paper(
        cls,
        model: nn.Module,
        schedule: SparsitySchedule | Mapping[int, float],
        *,
        exclude: Sequence[str] = EXCLUDE,
        max_param_sparsity: float = 1.0,
    ) -> Sniper:
        """SNIPER as the paper and its authors' code have it: single weights, one threshold with a
        fixed cap, initial values restored, learning rates times up to 10, gradients of pruned
        weights left alone. It saves no time.

        One thing differs: the authors leave out parameters by name only, here normalisation layers
        and embeddings are left out by their type too, whatever they are named.

        Args:
            model, schedule, exclude: as for `Sniper`.
            max_param_sparsity: no parameter is made sparser than this.

        Returns:
            A `Sniper` with these settings.

        Raises:
            ValueError: as `Sniper` does.

        Source: arXiv 2211.07283.
        """
        return cls(
            model,
            schedule,
            block_size=None,
            exclude=exclude,
            cap=Fixed(max_param_sparsity),
            new_weights=NewWeights(restore_init=True, prime_moments=0.0),
            lr_scale=LearningRateScale(max=10.0),
            paper_exact=True,
        )

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
            ValueError: masks are in force already, saliencies that are all zero, or as
                `sniper.saliency` says.

        Warns of layers whose weight the model reads without calling them; they are left dense.
        """
        self._check_attached("score")
        if self.sparsity is not None:
            raise ValueError(
                f"score: expected a model that is not masked yet, got sparsity {self.sparsity:g}"
            )
        masked = [name for name, density in self.densities().items() if density < 1]
        if masked:
            raise ValueError(
                f"score: expected a model without masks, got {masked[0]} with one: call "
                "sniper.densify(model) first, or load_state_dict for a model that goes on"
            )
        params = self._targets.parameters
        with (
            self._targets.watch_calls() as uncalled,
            summed_gradients(self.model, batches, loss_fn, params, over_ranks=True) as gradients,
            torch.no_grad(),
        ):
            # The model reads these weights itself: a layer that is not called cannot skip anything.
            # Which layers are called may depend on the batch (experts, layer drop).
            lost = uncalled()
            if distributed.several():
                lost = distributed.found_by_all(lost, list(params), next(iter(params.values())))
            read = [name for name in lost if gradients[name].any()]
            if read:
                self._leave_dense(read)
                params = self._targets.parameters
            if self.block_size is None:
                scores = {n: (gradients[n] * p).abs_() for n, p in params.items()}
            else:
                scores = {n: pool(p, gradients[n], self.block_size) for n, p in params.items()}
        check_some(scores)
        self.mask_block_size = self.block_size
        self._scheduled = nested_masks(
            scores, self.schedule.sparsities, self.cap, nested=not self.paper_exact
        )
        if self.new_weights.restore_init:
            # A copy of every masked weight, which is why it is kept only where values are to come
            # back.
            self._init = {n: p.detach().clone() for n, p in params.items()}
        return scores

    def _leave_dense(self, names: list[str]) -> None:
        self._targets.leave_dense(names)
        self._left_dense += names
        reason = "the model uses the weight without calling the layer"
        self._left_out |= {name.rpartition(".")[0]: reason for name in names}
        warnings.warn(
            f"Sniper: {', '.join(names)} {'is' if len(names) == 1 else 'are'} left dense: {reason}",
            stacklevel=3,
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: what is masked, and the rest; both at `lr`.

        The factors of `lr_scale` need no groups: they act during `optimizer.step()`, whatever the
        groups.

        Args:
            lr: learning rate, a number or a scalar tensor.

        Returns:
            Up to two groups with `params`, `lr` and `name`.

        Raises:
            ValueError: no number.
        """
        scalar = isinstance(lr, Tensor) and lr.numel() == 1
        if not (is_number(lr) or scalar) or not lr >= 0:
            raise ValueError(f"lr: expected a number >= 0, got {lr!r:.80}")
        masked = {id(p) for p in self._targets.parameters.values()}
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        groups = {
            "masked": [p for p in trainable if id(p) in masked],
            "dense": [p for p in trainable if id(p) not in masked],
        }
        return [{"params": ps, "lr": lr, "name": name} for name, ps in groups.items() if ps]

    def step(
        self,
        epoch: float,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        batches: Iterable[Any] | None = None,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> float:
        """Call at the start of every epoch: puts the scheduled masks on when they change.

        Args:
            epoch: counted from 0.
            optimizer: the optimizer, or several, of the model; needed for `lr_scale`.
            batches, loss_fn: as `score` takes them, for `growth="gradient"`; batches are iterated
                only when the sparsity is lowered, and the model is left as it was.

        Returns:
            The sparsity that is reached: the share of pruned weights among the masked parameters,
            in [0, 1]. It warns once where that is more than 0.01 from what the schedule asks for
            (`sparsity`), and once where learning rates should be scaled and no optimizer was given.

        Raises:
            ValueError: not scored yet, an epoch that is no number >= 0 or has a higher sparsity
                than the present one, an optimizer of another model or without learning rates to
                scale, a masked parameter that is no longer in the model or was tied since, no
                batches where gradients decide.
        """
        self._check_attached("step")
        self._follow()
        optimizers = as_list(optimizer)
        check_optimizers(optimizers, self.model, self.lr_scale is not None)
        sparsity = self.schedule.sparsity_at(epoch)
        if sparsity != self.sparsity:
            self._check_change(epoch, sparsity)
            # The first masks have nothing to grow from, and a dense stage takes everything.
            if self.growth == "gradient" and self.prune and self.sparsity and sparsity:
                self._grow(sparsity, batches, loss_fn)
            self._change(sparsity, optimizers)
        for each in optimizers:
            self._rates.attach(each)
        self._warn_of_what_differs()
        return self.reached

    def _check_change(self, epoch: float, sparsity: float) -> None:
        if self.sparsity is not None and sparsity > self.sparsity:
            raise ValueError(
                f"epoch {epoch}: sparsity must not rise, got {self.sparsity:g} then {sparsity:g}: "
                "expected epochs in ascending order; to go through the schedule again call "
                "detach() and make a new Sniper"
            )
        if self._scheduled is None and sparsity > 0:
            raise ValueError(
                "step: expected a scored model, got one without scores: "
                "call score(batches, loss_fn) first"
            )

    def _grow(
        self,
        sparsity: float,
        batches: Iterable[Any] | None,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    ) -> None:
        """Masks of this and the later stages anew, by the gradients of this moment; those of later
        stages will be made again when their turn comes.
        """
        if batches is None or loss_fn is None:
            raise ValueError(
                "step: growth='gradient' chooses by the gradients of batches: expected batches and "
                "loss_fn, got none: call step(epoch, optimizer, batches, loss_fn)"
            )
        assert self._scheduled is not None
        params = self._targets.parameters
        with (
            self._targets.lifted(),
            summed_gradients(self.model, batches, loss_fn, params, over_ranks=True) as gradients,
            torch.no_grad(),
        ):
            sizes = {name: g.abs() for name, g in gradients.items()}
            if self.block_size is not None:
                sizes = pool_blocks(sizes, self.block_size)
        active = {name: self._targets.copy_mask(name).as_subclass(Tensor) for name in params}
        later = [s for s in self.schedule.sparsities if s <= sparsity]
        grown, before = grown_masks(active, sizes, later, self.cap), self._scheduled
        self._scheduled = MaskStages(
            {**before.masks, **grown.masks}, {**before.counts, **grown.counts}
        )

    def _change(self, sparsity: float, optimizers: list[Optimizer]) -> None:
        if self._scheduled is not None:
            self._apply(sparsity, optimizers)
        self.sparsity = sparsity
        if sparsity == self.schedule.sparsities[-1]:
            self._init.clear()  # nothing becomes active any more

    def _warn_of_what_differs(self) -> None:
        """Once each: a sparsity that was not reached, learning rates that are not scaled."""
        asked, reached = self.sparsity or 0.0, self.reached
        differs = self.prune and abs(reached - asked) > TOLERANCE
        if differs and "reached" not in self._warned:
            self._warned.add("reached")
            warnings.warn(
                f"Sniper: sparsity {asked:.1%} was asked for and {reached:.1%} reached: "
                f"{describe.why_not_reached(self)}",
                stacklevel=3,
            )
        # A dense stage has nothing to scale, so nothing is said of it.
        scaled = any(factor != 1 for factor in self.lr_scales().values())
        if scaled and not self._rates.attached and "rates" not in self._warned:
            self._warned.add("rates")
            warnings.warn(
                "Sniper: the learning rate is not scaled without the optimizer: call "
                "step(epoch, optimizer), or make the Sniper with lr_scale=None",
                stacklevel=3,
            )

    @property
    def scored(self) -> bool:
        """Whether masks were derived, by `score` or from a saved state."""
        return self._scheduled is not None

    @property
    def reached(self) -> float:
        """The sparsity of all masked parameters together at this moment, in [0, 1]."""
        params = self._targets.parameters
        # From densities that the host knows; counting masks would wait for a GPU at every call.
        active = sum(d * params[name].numel() for name, d in self.densities().items())
        return 1 - active / max(sum(p.numel() for p in params.values()), 1)

    def masks(self, sparsity: float | None = None) -> dict[str, Tensor]:
        """Copies of the masks by parameter name, True where active.

        Args:
            sparsity: a sparsity of the schedule, for the masks of that stage; None for those in
                force, which are all True before the first `step`.

        Returns:
            Bool tensors of the parameters' shapes; with `block_size` b one value a block: `[N/b,
            K/b]` for a weight `[N, K]`, `[N/b, taps, C/b]` for `[N, C, taps]`.

        Raises:
            ValueError: not scored yet, or a sparsity that is not in the schedule.
        """
        if self._scheduled is None and self.sparsity is None:
            raise ValueError(
                "masks: expected a scored model, got one without scores: "
                "call score(batches, loss_fn) first"
            )
        if sparsity is not None:
            stages = {} if self._scheduled is None else self._scheduled.masks
            if check_sparsity(sparsity, "sparsity") not in stages:
                got = f"{sparsity!r}; the schedule has {sorted(stages, reverse=True)}"
                raise ValueError(f"sparsity: expected one of the schedule, got {got}")
            return {name: mask.clone() for name, mask in stages[sparsity].items()}
        return {name: self._targets.copy_mask(name) for name in self._targets.parameters}

    def summary(self) -> str:
        """A table of what is in force: the stage, what was asked for and what is reached, by
        parameter its shape, density and factor on the learning rate, and what is left dense and
        why.

        Returns:
            Several lines of text, for `print`.
        """
        return describe.summary(self)

    def __repr__(self) -> str:
        return describe.one_line(self)

    def detach(self) -> None:
        """Ends it: takes its hooks off the model and the optimizers and lifts the masks, so that
        another Sniper may be made for the model. Pruned weights stay 0 until an update moves them.
        """
        self._targets.detach()
        self._rates.detach()
        for p in self._targets.parameters.values():
            _masked_by.pop(p, None)
        self.detached = True

    def _follow(self) -> None:
        """Masks what has taken the place of parameters that it knew, as with
        `load_state_dict(assign=True)`.

        Raises:
            ValueError: a parameter that it masks is no longer in the model, or was tied to another
                module's.
        """
        self._targets.follow()
        there = {id(p) for p in self.model.parameters()}
        gone = [n for n, p in self._targets.parameters.items() if id(p) not in there]
        if gone:
            raise ValueError(
                f"model: expected the parameters that are masked, got one without {gone[0]}, which "
                "was replaced or removed: call detach() and make a new Sniper"
            )
        self._targets.check_untied(self.model)
        for p in self._targets.parameters.values():
            # Weak: a Sniper that nobody holds any more must not block the model for ever.
            _masked_by[p] = weakref.ref(self._targets)
        if self.sparsity is not None:
            self._set_lr_scales()

    def _check_attached(self, what: str) -> None:
        if self.detached:
            raise ValueError(f"{what}: expected a Sniper in use, got one after detach()")
        # A model may be sharded after its Sniper was made.
        check_whole_parameters(self.model)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # Its hooks sit on the parameters and optimizers themselves, which copies do not follow.
        raise TypeError(
            "Sniper: expected its state to be copied or pickled, got the object: save "
            "model.state_dict() and snip.state_dict(), make a new Sniper of the other model, and "
            "call load_state_dict on both"
        )

    def zero_pruned(self) -> None:
        """Zeroes pruned weights, before they are saved say: with `paper_exact` an update by what is
        no optimizer of torch's moves them, and the next forward would zero them.
        """
        if self.paper_exact:
            self._targets.zero_pruned()

    def left_out(self) -> dict[str, str]:
        """Why it leaves things dense, by name: layers, or with `block_size=None` parameters."""
        return dict(self._left_out)

    def densities(self) -> dict[str, float]:
        """Share of active weights by parameter name, in [0, 1]."""
        return {name: self._targets.density(name) for name in self._targets.parameters}

    def masked_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that it masks, by name."""
        return dict(self._targets.parameters)

    def gradient_masks(self) -> dict[int, BlockLayout | Tensor]:
        """By the id of a parameter, what says which of its gradient may differ from 0 now: a layout
        or a mask. Parameters of which nothing is pruned are left out; with `paper_exact`, all.
        """
        if self.paper_exact:
            return {}
        masks = {n: self._targets.gradient_mask(n) for n in self._targets.parameters}
        return {id(self._targets.parameters[n]): m for n, m in masks.items() if m is not None}

    def lr_scales(self) -> dict[str, float]:
        """The present factor on each masked parameter's learning rate."""
        if self.lr_scale is None:
            return dict.fromkeys(self._targets.parameters, 1.0)
        return {name: self.lr_scale.factor(d) for name, d in self._scheduled_densities().items()}

    def _scheduled_densities(self) -> dict[str, float]:
        """Those of the masks in force; with `prune=False` of the masks that would be."""
        if self.prune or self._scheduled is None or self.sparsity is None:
            return self.densities()
        masks, counts = self._scheduled.masks[self.sparsity], self._scheduled.counts
        return {n: counts[self.sparsity][n] / max(m.numel(), 1) for n, m in masks.items()}

    @torch.no_grad()
    def _apply(self, sparsity: float, optimizers: list[Optimizer]) -> None:
        assert self._scheduled is not None
        if not self.prune:
            self.sparsity = sparsity
            self._set_lr_scales()
            return
        targets, masks = self._targets, self._scheduled.masks[sparsity]
        # On the first masks a weight changes its order in memory, and moments that an optimizer has
        # already are cleared where pruned; later masks only add weights.
        first = [name for name in targets.parameters if not targets.has_mask(name)]
        # Copies, since the layouts are about to be overwritten in place.
        before = {name: targets.get_mask(name) for name in targets.parameters}
        targets.change_masks(masks, self._scheduled.counts[sparsity], self._init)
        for name, mask in before.items():
            if mask is not None:
                newly = targets.expand(name, masks[name].to(mask.device) & ~mask)
                p, mask = targets.parameters[name], targets.expand(name, mask)
                if not self.paper_exact:
                    start_anew(optimizers, p, newly)
                if self.new_weights.prime_moments:
                    prime(optimizers, p, mask, newly, self.new_weights.prime_moments)
        for name in first:
            if name in self._init:  # once, or every change would do it
                self._init[name] = match_weight(self._init[name], targets.parameters[name])
        if distributed.several():
            self._compare_ranks(sparsity)
        for name in first if not self.paper_exact else ():
            p = targets.parameters[name]
            moved = gradient_and_moments(optimizers, p)
            if moved:
                mask = targets.expand(name, masks[name].to(p.device))
                for value in moved:
                    value.masked_fill_(~mask, 0)
        self._set_lr_scales()
        # Scoring, or steps at another density: the next ones need other pieces of memory.
        give_back_freed_memory()

    def _compare_ranks(self, sparsity: float) -> None:
        """Stops where processes that train together would skip different weights."""
        targets = self._targets
        # The index arrays that kernels read, not only the masks: a fault in writing them shows here
        # too.
        value = distributed.checksum({name: targets.state(name) for name in targets.parameters})
        device = next(iter(targets.parameters.values())).device
        distributed.check_same(f"masks of sparsity {sparsity:g}", value, device)

    def _set_lr_scales(self) -> None:
        scales = self.lr_scales()
        self._rates.set({p: scales[n] for n, p in self._targets.parameters.items()})

    def state_dict(self) -> dict[str, Any]:
        """Masks of all stages as packed bits, the position in the schedule, initial values still to
        be restored, and what was left dense.

        Only tensors, numbers, strings and dictionaries: `torch.load(weights_only=True)` reads it.
        """
        shapes = {name: list(p.shape) for name, p in self._targets.parameters.items()}
        return {
            "version": STATE_VERSION,
            "block_size": self.block_size,
            "sparsity": self.sparsity,
            "shapes": shapes,
            "masks": None if self._scheduled is None else pack(self._scheduled.masks),
            "init": dict(self._init),
            "left_dense": list(self._left_dense),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state, also one of another block size or device; load the model's
        weights first.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: masks are in force already, another format version, other parameters, no
                masks for a sparsity of the schedule, a mask that is missing, or a parameter that is
                no longer in the model.

        Warns where `restore_init` finds no initial values in it, and of layers that it leaves dense
        as `score` does.
        """
        self._check_attached("load_state_dict")
        self._follow()
        if not isinstance(state, Mapping):
            got = type(state).__name__
            raise ValueError(f"sniper state: expected a mapping from state_dict(), got {got}")
        if self.sparsity is not None:
            raise ValueError(
                "sniper state: expected a Sniper without masks in force, got one at sparsity "
                f"{self.sparsity:g}: make a new model and Sniper"
            )
        params = self._targets.parameters
        check_state(state, {n: tuple(p.shape) for n, p in params.items()}, self.schedule)
        # What was found by scoring, which is not done again. Single weights are masked whoever
        # reads them.
        blocks = self.block_size is not None
        read = [n for n in state.get("left_dense", ()) if blocks and n in params]
        params = {n: p for n, p in params.items() if n not in read}
        _check_complete(state, params, self.block_size)
        if read:
            self._leave_dense(read)
        if self.new_weights.restore_init:
            self._warn_of_initial_values(state)
        device = next(iter(params.values())).device
        self._init = (
            {n: t.to(device) for n, t in state["init"].items()}
            if self.new_weights.restore_init
            else {}
        )
        self._scheduled = None
        if state["masks"] is None:
            return
        shapes = {n: p.shape for n, p in params.items()}
        self.mask_block_size = state["block_size"]
        masks, added = unpack(state, self.block_size, shapes, device)
        self._scheduled = MaskStages.count(masks)
        if state["sparsity"] is None:
            return
        self._apply(state["sparsity"], [])
        for name, newly in added.get(state["sparsity"], {}).items():
            # Blocks of another size cover weights that were pruned when the state was saved.
            if name in self._init:
                params[name].data.copy_(torch.where(newly, self._init[name], params[name].data))
        self.sparsity = state["sparsity"]

    def _warn_of_initial_values(self, state: Mapping[str, Any]) -> None:
        """Says so where a state lacks the values that weights are to come back at."""
        last, now = self.schedule.sparsities[-1], state["sparsity"]
        if state["masks"] is None or (now is not None and now <= last):
            return
        lost = [n for n in self._targets.parameters if n in state["shapes"].keys() - state["init"]]
        if lost:
            warnings.warn(
                f"sniper state: expected an initial value of {lost[0]} to restore, got none: it "
                "was saved without restore_init, or at the end of its schedule; weights come back "
                "at 0",
                stacklevel=3,
            )


def _check_kind(what: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{what}: expected {names}, got {value!r}")


def _layers_left_out(report: SparsifyReport, parameters: Mapping[str, str]) -> dict[str, str]:
    """Why layers are left dense, by name: as `sparsify` says, or since their weight is left out."""
    reasons = {
        m.name: m.reason or parameters.get(f"{m.name}.weight" if m.name else "weight", "")
        for m in report.modules
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _check_free(params: Mapping[str, nn.Parameter]) -> None:
    """Refuses parameters that another Sniper masks: each would undo what the other does."""
    for name, p in params.items():
        taken = _masked_by.get(p)
        if taken is not None and taken() is not None:
            raise ValueError(
                f"model: expected one without a Sniper, got one whose {name} has a Sniper already: "
                "use that, or call its detach() before you make another (or take a new model)"
            )


def _check_complete(
    state: Mapping[str, Any], params: Mapping[str, nn.Parameter], block_size: int | None
) -> None:
    """Refuses a saved state that lacks a mask: its parameter would train dense, in silence."""
    for sparsity, stage in (state["masks"] or {}).items():
        lost = [name for name in state["shapes"] if name not in stage]
        # With other blocks there may be layers that had no mask.
        if state["block_size"] == block_size:
            lost += [name for name in params if name not in stage and name not in lost]
        if lost:
            raise ValueError(
                f"sniper state: expected a mask of {lost[0]} for sparsity {sparsity:g}, got none: "
                "load the state that was saved with this model and exclude"
            )
