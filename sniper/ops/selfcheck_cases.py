# SPDX-License-Identifier: Apache-2.0
"""Small awkward cases of every family of GPU kernels, each against the reference in float64.

Odd lengths, an empty block row, padding on one side, dropout, a single row, and a step that is
recorded and replayed with other values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops import selfcheck
from sniper.ops.backends import REFERENCE, TRITON
from sniper.ops.backends.cpu.elementwise import dropout as cpu_dropout
from sniper.ops.backends.triton import (
    adam,
    attention,
    batch_norm,
    elementwise,
    loss,
    norm,
    positions,
    regulator,
    tuning,
)
from sniper.ops.geometry import Epilogue, Geometry
from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import mask_blocks_

# A family's check returns its largest error, relative to the largest value, and raises ValueError
# beyond the dtype's tolerance.
Check = Callable[[], float]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TOLERANCE = {"bf16": 2e-2, "fp16": 4e-3, "tf32": 4e-3, "fp32": 1e-5}
_DROPOUT, _SEED = 0.25, 11


def families(dtype: str, block_size: int, device: torch.device) -> dict[str, Check]:
    """The checks of everything that would run for a dtype and block size, by family.

    Args:
        dtype: `bf16`, `fp16`, `tf32` or `fp32`.
        block_size: edge of a block; `NO_BLOCKS`: kernels that multiply nothing.
        device: a GPU, or the CPU in Triton's interpreter.
    """
    if block_size == selfcheck.NO_BLOCKS:
        return {selfcheck.OPTIMIZER: partial(_optimizer, device)}
    case = _Case(dtype, block_size, device)
    checks: dict[str, Check] = {
        selfcheck.ELEMENTWISE: partial(_elementwise, dtype, device),
        selfcheck.NORM: partial(_norm, dtype, device),
        selfcheck.BATCH_NORM: partial(_batch_norm, dtype, device),
        selfcheck.LOSS: partial(_loss, dtype, device),
        selfcheck.REGULATOR: partial(_regulator, dtype, device),
    }
    if dtype in ("bf16", "fp16"):
        checks[selfcheck.ATTENTION] = partial(_attention, dtype, device)
    for which in ("fwd", "dgrad", "wgrad"):
        for tiling in case.tilings(which):
            name = selfcheck.family(tiling.path, tuning.op_of(which))
            before = checks.get(name)
            checks[name] = partial(_all_of, before, partial(case.check, which, tiling))
    if device.type == "cuda":
        checks[selfcheck.RECORDED] = case.check_recorded
    return checks


def _all_of(*checks: Check | None) -> float:
    return max(check() for check in checks if check is not None)


class _Case:
    """One layer with three taps, seen through every pass."""

    def __init__(self, dtype: str, block_size: int, device: torch.device):
        self.dtype, self.device = dtype, device
        generator = torch.Generator().manual_seed(0)
        randn = partial(torch.randn, generator=generator)
        mask = torch.rand(3, 3, 2, generator=generator) < 0.6
        mask[1] = False  # an output block that nothing reaches
        mask[0, 0, 0] = True
        # Padding on one side alone shows a kernel that takes one side for the other.
        self.geometry = Geometry(3, 2, 3, 0)
        # No multiple of any tile, so that the last one reaches over the end; more tiles than a
        # pipeline has stages.
        self.length = 150
        n, c = 3 * block_size, 2 * block_size
        host = BlockLayout(mask, block_size)
        weight = (randn(n, 3, c) * host.element_mask()).flatten(1)
        rounded = _DTYPES.get(dtype, torch.float32)
        tensors = {
            "x": randn(2, self.length, c),
            "dy": randn(2, self.geometry.out_length(self.length), n),
            "weight": weight / 8,
            "bias": randn(n),
        }
        # Rounded before the reference sees them too: what differs then is the kernel's alone.
        tensors = {name: t.to(rounded) for name, t in tensors.items()}
        self._host = {name: t.double() for name, t in tensors.items()}
        self._host_layout = host
        self.layout = host.to(device)
        self.tensors = {name: t.to(device) for name, t in tensors.items()}

    def tilings(self, which: str) -> list[tuning.Tiling]:
        return tuning.every_tiling(which, self.layout, *self._operands(which)[:2])

    def check(self, which: str, tiling: tuning.Tiling) -> float:
        name, worst = f"{which} {tiling}", 0.0
        if which == "wgrad":
            # In a call of its own: with the bias's sum it is another kernel.
            dy, x = self._operands(which)
            got, db = TRITON.wgrad(dy, x, self.layout, self.geometry, True, tiling)
            worst = _compare(name, got, self._wanted(which), self.dtype)
            assert db is not None  # it was asked for
            into = torch.ones_like(got, dtype=torch.float32)
            # Whatever lies in pruned blocks must not count.
            pruned = ~self.layout.element_mask().flatten(1)
            TRITON.add_blocks(got.masked_fill(pruned, float("nan")), self.layout, into)
            worst = max(worst, _compare("added", into - 1, self._wanted(which), self.dtype))
            sums = self._host["dy"].sum((0, 1))
            worst = max(worst, _compare(f"dL/db of {name}", db, sums, self.dtype))
        if which == "dgrad":
            # What lies behind the gate: the case's x, whose signs say what ReLU let through.
            (dy, weight, length), x = self._operands(which), self.tensors["x"]
            args = (dy, weight, self.layout, self.geometry, length, x, _DROPOUT)
            passed = (self._host["x"] > 0) / (1 - _DROPOUT)
            gated, wanted = TRITON.dgrad(*args, tiling), self._wanted(which) * passed
            worst = _compare(f"gated {name}", gated, wanted, self.dtype)
        return max(worst, _compare(name, self._run(which, tiling), self._wanted(which), self.dtype))

    def check_recorded(self) -> float:
        """All passes in one graph, replayed after the inputs have changed."""
        x = self.tensors["x"]

        def step() -> list[Tensor]:
            passes = ("fwd", "dgrad", "wgrad")
            return [self._run(w, self.tilings(w)[0]) for w in passes]

        # The step runs once before it is recorded, since nothing may be compiled in a recording.
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = step()
        # A graph that had kept values in place of addresses would give the old results.
        x.mul_(-2)
        self._host["x"].mul_(-2)
        graph.replay()
        wanted = [self._wanted(w) for w in ("fwd", "dgrad", "wgrad")]
        return max(
            _compare("replayed", got, w, self.dtype) for got, w in zip(results, wanted, strict=True)
        )

    def _operands(self, which: str, host: bool = False) -> tuple:
        t = self._host if host else self.tensors
        return {
            "fwd": (t["x"], t["weight"], t["bias"]),
            "dgrad": (t["dy"], t["weight"], self.length),
            "wgrad": (t["dy"], t["x"]),
        }[which]

    def _run(self, which: str, tiling: tuning.Tiling) -> Tensor:
        if which == "fwd":
            end = Epilogue(True, _DROPOUT, _SEED)
            x, weight, bias = self._operands(which)
            return TRITON.fwd(x, weight, bias, self.layout, self.geometry, end, tiling)
        return TRITON.run_with(tiling, which, self.layout, self.geometry, *self._operands(which))

    def _wanted(self, which: str) -> Tensor:
        operands, layout, geometry = (
            self._operands(which, host=True),
            self._host_layout,
            self.geometry,
        )
        if which == "fwd":
            x, weight, bias = operands
            y = REFERENCE.fwd(x, weight, bias, layout, geometry).relu()
            keep = _keep(y.shape)
            return y * keep / (1 - _DROPOUT)
        if which == "dgrad":
            dy, weight, length = operands
            return REFERENCE.dgrad(dy, weight, layout, geometry, length)
        dy, x = operands
        return REFERENCE.wgrad(dy, x, layout, geometry)[0]


def _keep(shape: torch.Size) -> Tensor:
    """What dropout keeps, as the CPU kernels have it: 0 or 1."""
    return (cpu_dropout(torch.ones(shape), _DROPOUT, _SEED) > 0).double()


def _elementwise(dtype: str, device: torch.device) -> float:
    rounded = _DTYPES.get(dtype, torch.float32)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 7, 75, generator=generator).to(rounded)
    dy = torch.randn(3, 7, 75, generator=generator).to(rounded)
    keep, scale = _keep(x.shape), 1 / (1 - _DROPOUT)
    # Under autocast all that is added to is float32.
    encoding, alpha = torch.randn(7, 75, generator=generator), torch.tensor(1.5)
    added = (encoding.to(device), alpha.to(device), 2.0, _DROPOUT, _SEED)
    at = positions.add_positions(x.to(device), *added)
    ends = (rounded, True, *added[2:])
    dx, dalpha = positions.add_positions_backward(dy.to(device), added[0], *ends)
    assert dalpha is not None  # it was asked for
    kept = dy.double() * keep * scale
    y = elementwise.dropout(x.to(device), _DROPOUT, _SEED, relu=True)
    dz, db = elementwise.relu_dropout_backward_bias(dy.to(device), y, _DROPOUT)
    wanted_dz = dy.double() * keep * (x > 0) * scale
    pairs = {
        "positions": (at, (2 * x.double() + 1.5 * encoding) * keep * scale),
        "dx of positions": (dx, 2 * kept),
        "dalpha": (dalpha, (kept * encoding).sum()),
        "dropout": (y, x.double().relu() * keep * scale),
        "gradient": (dz, wanted_dz),
        "gradient without sums": (
            elementwise.relu_dropout_backward(dy.to(device), y, _DROPOUT),
            wanted_dz,
        ),
        "its sums": (db, wanted_dz.sum((0, 1))),
        "column sums": (elementwise.column_sums(dy.to(device)), dy.double().sum((0, 1))),
    }
    return max(_compare(name, got, wanted, dtype) for name, (got, wanted) in pairs.items())


def _optimizer(device: torch.device) -> float:
    """Two clipped updates of a masked weight and of a stretch of odd length."""
    generator = torch.Generator().manual_seed(2)
    randn = partial(torch.randn, generator=generator)
    layout = BlockLayout(torch.tensor([[False, False, False], [True, False, True]]), 64)
    host = [mask_blocks_(randn(128, 192), layout), randn(1500)]
    wanted = [p.double().requires_grad_() for p in host]
    reference = torch.optim.AdamW(wanted, lr=0.1, weight_decay=0.1, eps=1e-3)
    weights = [p.to(device) for p in host]
    grads, firsts, seconds = ([torch.zeros_like(w) for w in weights] for _ in range(3))
    steps = [torch.zeros((), device=device) for _ in weights]
    layouts = [layout.to(device), None]
    rates = (0, 1.0, (0.9, 0.999), 1e-3, 0.1, True, False)
    entries = [
        adam.Entry(w, g, m, v, None, step, *rates, each)
        for w, g, m, v, step, each in zip(
            weights, grads, firsts, seconds, steps, layouts, strict=True
        )
    ]
    table = adam.AdamTable(entries)
    for _ in range(2):
        for grad, p in zip(grads, wanted, strict=True):
            drawn = randn(p.shape)
            grad.copy_(drawn)
            p.grad = (drawn if p.dim() == 1 else mask_blocks_(drawn, layout)).double()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        scale = (1.0 / (table.norm_squared().sqrt() + 1e-6)).clamp(max=1.0).float()
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        table.update([0.1], scale, clear=False)
        reference.step()
    error = max(
        _compare("weights", w, p.detach(), "fp32") for w, p in zip(weights, wanted, strict=True)
    )
    table.clear()
    active = layouts[0].element_mask().flatten(1)
    left = max(grads[0][active].abs().max().item(), grads[1].abs().max().item())
    if left != 0:
        raise ValueError(f"cleared gradients: expected 0, got {left:g}")
    return error


def _norm(dtype: str, device: torch.device) -> float:
    """With a float32 residual, as under autocast, and with one of the dtype, without a branch but
    with a ReLU before and dropout behind.
    """
    rounded = _DTYPES.get(dtype, torch.float32)
    generator = torch.Generator().manual_seed(2)
    randn = partial(torch.randn, generator=generator)
    # More rows than two programs take at once, of a number of columns that no tile has.
    shape = (3, 37, 75)
    x, ds, weight, bias = randn(shape) + 1, randn(shape), randn(75), randn(75)
    branch, dy = randn(shape).to(rounded), randn(shape).to(rounded)
    keep = _keep(x.shape) / (1 - _DROPOUT)
    worst = 0.0
    for residual, has_branch in ((torch.float32, True), (rounded, False)):
        x, ds, relu = x.to(residual), ds.to(residual), not has_branch
        there = [t.to(device) for t in (x, branch, weight, bias)]
        h, h_dtype = (there[1], rounded) if has_branch else (None, None)
        end = (1e-5, _DROPOUT, _SEED, rounded, relu)
        s, y, mean, rstd = norm.add_norm(there[0], h, there[2], there[3], *end)
        normed = (there[0] if s is None else s, mean, rstd, there[2])
        args = (dy.to(device), ds.to(device), *normed, residual, h_dtype, _DROPOUT, _SEED)
        dx, dbranch, *parameters = norm.add_norm_backward(*args, most_chunks=2, relu=relu)
        leaves = [t.double().requires_grad_() for t in (x, branch, weight, bias)]
        wanted_s = leaves[0] + leaves[1] * keep * has_branch
        wanted_y = F.layer_norm(wanted_s.relu() if relu else wanted_s, (75,), *leaves[2:], 1e-5)
        wanted_y = wanted_y * keep if relu else wanted_y
        outputs, gradients = (wanted_s, wanted_y), (ds.double(), dy.double())
        wanted = (wanted_y.detach(), *torch.autograd.grad(outputs, leaves, gradients))
        names = ("normalised", "dx", "dbranch", "dweight", "dbias")
        for name, got, right in zip(names, (y, dx, dbranch, *parameters), wanted, strict=True):
            if got is not None:
                worst = max(worst, _compare(name, got, right, dtype))
    return worst


def _batch_norm(dtype: str, device: torch.device) -> float:
    """With tanh and dropout, and without, over rows that end within a chunk."""
    rounded = _DTYPES.get(dtype, torch.float32)
    generator = torch.Generator().manual_seed(3)
    randn = partial(torch.randn, generator=generator)
    shape = (3, 67, 75)
    x, dy = (randn(shape) + 3).to(rounded), randn(shape).to(rounded)
    # Apart, or tanh would be flat for most.
    weight, bias = randn(75) / 2, randn(75) / 2
    worst = 0.0
    for tanh, p in ((True, _DROPOUT), (False, 0.0)):
        there = [t.to(device) for t in (x, weight, bias)]
        running = (torch.zeros(75), torch.ones(75), torch.zeros((), dtype=torch.int64))
        moved = [t.double() for t in running[:2]]
        on_device = (running[0].to(device), running[1].to(device), running[2].to(device))
        mean, rstd = batch_norm.statistics(there[0], 1e-5, on_device, 0.1)
        args = (there[0], mean, rstd, there[1], there[2], tanh, p, _SEED)
        y = batch_norm.batch_norm(*args)
        gradients = batch_norm.batch_norm_backward(dy.to(device), *args)
        leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
        rows, kept = leaves[0].flatten(0, 1), (moved[0], moved[1])
        wanted = F.batch_norm(rows, *kept, leaves[1], leaves[2], True, 0.1, 1e-5).view(shape)
        wanted = wanted.tanh() if tanh else wanted
        wanted = wanted * _keep(x.shape) / (1 - p) if p else wanted
        right = (wanted.detach(), *torch.autograd.grad(wanted, leaves, dy.double()), *moved)
        names = ("normalised", "dx", "dweight", "dbias", "running mean", "running variance")
        got = (y, *gradients, *on_device[:2])
        for name, ours, theirs in zip(names, got, right, strict=True):
            worst = max(worst, _compare(name, ours, theirs, dtype))
        if int(on_device[2]) != 1:
            raise ValueError(f"batches: expected 1 after one, got {int(on_device[2])}")
    return worst


def _attention(dtype: str, device: torch.device) -> float:
    """Heads of two pieces with hidden keys and dropout, and of one without, by both ways to read
    whole tiles and by the one for what is left.
    """
    generator = torch.Generator().manual_seed(5)
    worst = 0.0
    for heads, channels, p, masked in ((2, 192, _DROPOUT, True), (3, 64, 0.0, False)):
        shape = (3, 150, heads * channels)
        packed = [torch.randn(shape, generator=generator).to(_DTYPES[dtype]) for _ in range(4)]
        mask = torch.arange(150) < torch.tensor([150, 71, 0])[:, None]
        mask[0, 20:90:3] = False
        mask = mask if masked else None
        # Columns of one tensor, as a layer's three projections come.
        q, k, v, dy = torch.cat(packed, 2).to(device).chunk(4, 2)
        on_device = None if mask is None else mask.to(device)
        y, normal = attention.attention(q, k, v, on_device, heads, p, _SEED)
        grads = attention.attention_backward(dy, q, k, v, on_device, y, normal, p, _SEED)
        leaves = [t.double().requires_grad_() for t in packed[:3]]
        wanted = _attention_written_out(leaves, mask, heads, p)
        right = (wanted.detach(), *torch.autograd.grad(wanted, leaves, packed[3].double()))
        names = ("attention", "dq", "dk", "dv")
        for name, ours, theirs in zip(names, (y, *grads), right, strict=True):
            worst = max(worst, _compare(name, ours, theirs, dtype))
    return worst


def _attention_written_out(
    leaves: list[Tensor], mask: Tensor | None, heads: int, p: float
) -> Tensor:
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in leaves)
    batch, length, columns = leaves[0].shape
    counts = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    counts = counts[:, None, None]
    scores = (q @ k.mT / (columns // heads) ** 0.5).masked_fill(~counts, -1e30)
    weights = scores.softmax(-1) * counts
    if p:
        drawn = _keep(torch.Size((heads, batch, length, length))).transpose(0, 1)
        # Words are of the keys that count, one behind the other.
        place = (counts.long().cumsum(-1) - 1).clamp_min(0).expand(drawn.shape)
        weights = weights * drawn.gather(3, place) / (1 - p)
    return (weights @ v).transpose(1, 2).flatten(2)


def _loss(dtype: str, device: torch.device) -> float:
    """Means over entries and over utterances, of frames that take two programs."""
    rounded = _DTYPES.get(dtype, torch.float32)
    generator = torch.Generator().manual_seed(4)
    randn = partial(torch.randn, generator=generator)
    shapes = [(3, 70, 75)] * 2 + [(3, 9)] * 3
    predicted = loss.Predictions(*(randn(shape).to(rounded) for shape in shapes))
    durations = torch.randint(0, 3, (3, 9), generator=generator)
    lengths = torch.tensor([70, 31, 1]), torch.tensor([9, 1, 4])
    targets = loss.Targets(randn(shapes[0]), durations, randn(3, 9), randn(3, 9), *lengths, None)
    there, known = predicted.map(lambda t: t.to(device)), targets.map(lambda t: t.to(device))
    frames, tokens = (torch.arange(n) < t[:, None] for n, t in zip((70, 9), lengths, strict=True))
    worst = 0.0
    for masking in ("entries", "utterances"):
        total, terms, weights = loss.losses(there, known, False, masking)
        one = torch.ones((), device=device)
        gradients = loss.losses_backward(one, weights, there, known, False, masking)
        leaves = [t.double().requires_grad_() for t in predicted if t is not None]
        right = []
        spoken = tokens & (durations > 0)
        goals = (targets.mel, targets.mel, durations.double().log1p(), *targets[2:4])
        masks = (frames, frames, tokens, spoken, spoken)
        for leaf, goal, mask in zip(leaves, goals, masks, strict=True):
            away = leaf - goal.double()
            away = away.abs().mean(-1) if mask is frames else away.square()
            over = mask.sum() if masking == "entries" else 3 * mask.sum(1, keepdim=True)
            right.append((away * mask / over.clamp(min=1)).sum())
        wanted = torch.stack(right)
        slopes = torch.autograd.grad(wanted.sum(), leaves)
        worst = max(worst, _compare("terms", terms, wanted.detach(), dtype))
        worst = max(worst, _compare("total", total, wanted.detach().sum(), dtype))
        for name, ours, theirs in zip(there._fields, gradients, slopes, strict=True):
            assert ours is not None  # there is a postnet
            worst = max(worst, _compare(f"gradient of {name}", ours, theirs, dtype))
    return worst


def _regulator(dtype: str, device: torch.device) -> float:
    """Sequences that are cut and padded, of tokens with many frames and with none."""
    rounded = _DTYPES.get(dtype, torch.float32)
    generator = torch.Generator().manual_seed(5)
    durations = torch.randint(0, 3, (3, 150), generator=generator)
    durations[1, ::2], durations[2, 9:] = 4, 0
    x, dy = (torch.randn(3, n, 75, generator=generator).to(rounded) for n in (150, 190))
    there = durations.to(device)
    y = regulator.repeat_tokens(x.to(device), there, 190)
    dx = regulator.repeat_tokens_backward(dy.to(device), there)
    leaf, wanted = x.double().requires_grad_(), torch.zeros(3, 190, 75, dtype=torch.float64)
    for b in range(3):
        rows = leaf[b].repeat_interleave(durations[b], 0)[:190]
        wanted[b, : len(rows)] = rows
    (right,) = torch.autograd.grad(wanted, leaf, dy.double())
    worst = _compare("repeated", y, wanted.detach(), dtype)
    return max(worst, _compare("gradient of repeated", dx, right, dtype))


def _compare(what: str, got: Tensor, wanted: Tensor, dtype: str) -> float:
    error = (got.double().cpu() - wanted).abs().max() / wanted.abs().max()
    # Not `>`: NaN must fail too.
    if not float(error) <= _TOLERANCE[dtype]:
        raise ValueError(
            f"{what}: expected the reference's values within {_TOLERANCE[dtype]:g} of the "
            f"largest, got an error of {float(error):.2g}"
        )
    return float(error)
