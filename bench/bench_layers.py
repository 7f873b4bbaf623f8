# SPDX-License-Identifier: Apache-2.0
"""Every pass of FastSpeech2's layers, block-sparse beside dense torch.

python bench/bench_layers.py --device cpu [--densities 1 0.6 0.4 0.2] [--block 64] [--repeats 9]
    [--sweeps 3] [--layers 384-1536-3] [--independent-taps] [--no-save]

On a CPU blocks mostly share their taps, as SNIPER's do: of its masks at 80 %, in feed-forward
layers, three of four pairs of an output and an input block with an active tap have all three.

Dense is the better of torch's two ways: F.conv1d on `[B, C, T]`, and F.linear for one tap. The CPU
goes through the whole list `--sweeps` times and takes medians over all of them: what shares the
machine slows it for minutes, and would otherwise meet some layers and not others.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
from collections.abc import Callable
from typing import cast

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sniper import BlockSparseConv1d, BlockSparseLinear, densify
from sniper.ops import keep_freed_memory
from sniper.ops.backends import CPU
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout

# in, out, taps: attention projections, the feed-forward blocks of two models, a postnet.
LAYERS = ((384, 384, 1), (384, 1536, 3), (1536, 384, 3), (256, 1024, 9), (256, 256, 5))
BATCH, LENGTH = 8, 540
PASSES = ("fwd", "dgrad", "wgrad")
SPREAD = 0.1  # of taps' scores, where those of a pair of blocks spread over 1
SECONDS, MOST_ROUNDS = 1.5, 60  # of timing a pass, where `--repeats` asks for no more

Layer = tuple[int, int, int]
Calls = dict[str, Callable[[], Tensor]]
Times = dict[str, dict[str, list[float]]]


class Case:
    """One layer at one density: the same numbers in every provider's memory format.

    Args:
        layer: inputs, outputs, taps.
        tokens: batch and length.
        shared: whether the blocks of one output and one input block are mostly active together.
    """

    def __init__(
        self,
        layer: Layer,
        block: int,
        density: float,
        dtype: torch.dtype,
        tokens: tuple[int, int] = (BATCH, LENGTH),
        shared: bool = False,
    ):
        c, n, taps = layer
        self.block, (batch, self.length) = block, tokens
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(n // block, taps, c // block, generator=generator)
        if shared:
            pairs = torch.rand(n // block, 1, c // block, generator=generator)
            scores = pairs + SPREAD * scores
        active = max(1, round(density * scores.numel()))
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().topk(active).indices] = True
        self.mask = mask.view(scores.shape)
        self.layout = BlockLayout(self.mask, block)
        self.geometry = Geometry(taps, 1, taps // 2, taps // 2)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.x, self.dy = random(batch, self.length, c), random(batch, self.length, n)
        self.bias = random(n)
        self.weight = (random(n, taps, c) * self.layout.element_mask()).view(n, taps * c)
        self.tolerance = 1e-5 if dtype == torch.float32 else 2e-2

    def sparse(self) -> Calls:
        """Our kernels on `[B, T, C]`."""
        x, dy, w, layout, geometry = self.x, self.dy, self.weight, self.layout, self.geometry
        return {
            "fwd": lambda: CPU.fwd(x, w, self.bias, layout, geometry),
            "dgrad": lambda: CPU.dgrad(dy, w, layout, geometry, self.length),
            "wgrad": lambda: CPU.wgrad(dy, x, layout, geometry, with_bias=True)[0],
        }

    def linear(self) -> Calls:
        """F.linear and its gradients; one tap only."""
        x, dy, w = self.x, self.dy, self.weight

        def wgrad() -> Tensor:
            flat = dy.view(-1, dy.shape[-1])
            dw, _ = flat.t() @ x.view(-1, x.shape[-1]), flat.sum(0)
            return dw

        return {
            "fwd": lambda: F.linear(x, w, self.bias),
            "dgrad": lambda: dy @ w,
            "wgrad": wgrad,
        }

    def conv1d(self) -> Calls:
        """F.conv1d and its gradients on contiguous `[B, C, T]`."""
        taps, pad = self.geometry.taps, self.geometry.pad_left
        x, dy = (t.transpose(1, 2).contiguous() for t in (self.x, self.dy))
        w = self.weight.view(len(self.weight), taps, -1).permute(0, 2, 1).contiguous()

        def backward(*wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ops.aten.convolution_backward(
                dy, x, w, [len(w)], [1], [pad], [1], False, [0], 1, wanted
            )

        return {
            "fwd": lambda: F.conv1d(x, w, self.bias, padding=pad),
            "dgrad": lambda: backward(True, False, False)[0],
            "wgrad": lambda: backward(False, True, True)[1],
        }

    def providers(self) -> dict[str, Calls]:
        """By name; torch's come first."""
        dense = {"linear": self.linear()} if self.geometry.taps == 1 else {}
        return {"conv1d": self.conv1d(), **dense, "sparse": self.sparse()}

    def modules(self) -> dict[str, nn.Module]:
        """Layers as a user has them, `dense` with zeros where `sparse` has masked blocks."""
        taps = self.geometry.taps
        w = self.weight.view(len(self.weight), taps, -1)
        sparse: BlockSparseLinear | BlockSparseConv1d
        if taps == 1:
            sparse = BlockSparseLinear(w.shape[2], len(w), block_size=self.block)
        else:
            shape = (w.shape[2], len(w), taps)
            sparse = BlockSparseConv1d(*shape, padding=taps // 2, block_size=self.block)
        sparse.to(self.weight.dtype)
        with torch.no_grad():
            sparse.weight.copy_(w.squeeze(1) if taps == 1 else w.permute(0, 2, 1))
            cast(Tensor, sparse.bias).copy_(self.bias)
        sparse.set_block_mask(self.mask if taps > 1 else self.mask.squeeze(1))
        return {"dense": densify(copy.deepcopy(sparse)), "sparse": sparse}

    def step(self, module: nn.Module) -> Callable[[], tuple[Tensor, Tensor]]:
        """Forward and backward of one of `modules()`, through autograd and the choice of backends;
        gives the result and the gradient of the input.
        """
        conv = self.geometry.taps > 1
        # A conv takes [B, C, T]; these views of [B, T, C] are what models hand it.
        x, dy = (t.transpose(1, 2) if conv else t for t in (self.x, self.dy))
        x = x.detach().requires_grad_()

        def call() -> tuple[Tensor, Tensor]:
            x.grad = None
            module.zero_grad(set_to_none=True)
            with torch.enable_grad():
                y = module(x)
            y.backward(dy)
            return y.detach(), cast(Tensor, x.grad)

        return call

    def check(self, providers: dict[str, Calls]) -> None:
        """Holds every provider against the first, which is torch's."""
        wanted: dict[str, Tensor] = {}
        mask = self.layout.element_mask()
        for name, calls in providers.items():
            for which, call in calls.items():
                got = call()
                if which == "wgrad":
                    if name == "conv1d":
                        got = got.permute(0, 2, 1)
                    got = got.reshape(mask.shape) * mask
                elif name == "conv1d":
                    got = got.transpose(1, 2)
                reference = wanted.setdefault(which, got)
                common.check_close(f"{name} {which}", got, reference, self.tolerance)


def measure(layer: Layer, args: argparse.Namespace, density: float) -> Times:
    """Milliseconds of every call, by pass and provider."""
    dtype, shared = getattr(torch, args.dtype), not args.independent_taps
    case = Case(layer, args.block, density, dtype, shared=shared)
    providers = case.providers()
    case.check(providers)
    result = {}
    for which in PASSES:
        calls = {name: provider[which] for name, provider in providers.items()}
        once = common.time_side_by_side(calls, 1, lambda: None)
        # A small layer's median needs more rounds than a large one's to stand still.
        rounds = int(SECONDS * 1e3 / sum(t[0] for t in once.values()))
        rounds = max(args.repeats, min(rounds, MOST_ROUNDS))
        result[which] = common.time_side_by_side(calls, rounds, lambda: None)
    return result


def rows_of(
    layer: Layer, args: argparse.Namespace, density: float, sweeps: list[Times]
) -> list[common.Row]:
    """Rows of every provider and pass, over all sweeps."""
    rows = []
    for which in PASSES:
        cuts = {
            name: common.percentiles([t for times in sweeps for t in times[which][name]])
            for name in sweeps[0][which]
        }
        dense = min(c[1] for name, c in cuts.items() if name != "sparse")
        what = common.describe_layer(layer, (BATCH, LENGTH), density, args)
        if layer[2] > 1 and not args.independent_taps:
            what["shape"] += " shared taps"
        rows += common.rows(cuts, dense, torch.device("cpu"), pass_=which, **what)
    return rows


def summarise(layer: Layer, density: float, rows: list[common.Row]) -> float:
    """Prints one line; returns dense time over sparse time, all passes."""
    c, n, taps = layer
    sparse = {r.pass_: r for r in rows if r.provider == "sparse"}
    ours = sum(r.p50_ms for r in sparse.values())
    dense = sum(r.p50_ms * r.ratio_to_dense for r in sparse.values())
    flops = 2 * BATCH * LENGTH * c * n * taps * density
    cells = (
        f"{w} {r.p50_ms:7.2f} ms {flops / r.p50_ms / 1e6:4.0f} GFLOP/s {r.ratio_to_dense:5.2f}x"
        for w, r in sparse.items()
    )
    name = f"{c}-{n}-{taps}"
    print(f"{name:11} {density:4.2f}  {'  '.join(cells)}  all {dense / ours:5.2f}x", flush=True)
    return dense / ours


def parse_layer(name: str) -> Layer:
    """`384-1536-3` as inputs, outputs, taps."""
    c, n, taps = (int(v) for v in name.split("-"))
    return c, n, taps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--densities", type=float, nargs="+", default=[1.0, 0.6, 0.4, 0.2])
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sweeps", type=int, default=3, help="cpu: times through the whole list")
    parser.add_argument("--layers", nargs="+", help="in-out-taps; default: the whole set")
    parser.add_argument("--independent-taps", action="store_true", help="cpu: of random masks")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--tune", action="store_true", help="cuda: time all tile sizes first")
    args = parser.parse_args()
    layers: tuple[Layer, ...] = LAYERS
    if args.layers:
        layers = tuple(parse_layer(name) for name in args.layers)
    if args.device == "cuda":
        import layers_cuda

        return layers_cuda.main(layers, args)
    keep_freed_memory()  # for both sides, as training does
    sweeps = []
    for sweep in range(args.sweeps):
        print(f"sweep {sweep + 1} of {args.sweeps}", flush=True)
        cases = itertools.product(args.densities, layers)
        sweeps.append({(d, layer): measure(layer, args, d) for d, layer in cases})
    all_rows = []
    for density in args.densities:
        ratios = []
        for layer in layers:
            rows = rows_of(layer, args, density, [times[density, layer] for times in sweeps])
            ratios.append(summarise(layer, density, rows))
            all_rows += rows
        mean = math.exp(sum(math.log(r) for r in ratios) / len(ratios))
        print(f"density {density}: {mean:.2f}x dense, geometric mean of {len(ratios)} layers\n")
    if not args.no_save:
        print(common.append_rows("layers_cpu", all_rows))


if __name__ == "__main__":
    with torch.no_grad():
        main()
