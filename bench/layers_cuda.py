# SPDX-License-Identifier: Apache-2.0
"""The GPU half of `bench_layers.py`: every pass of a layer, block-sparse beside dense torch.

Times are medians between CUDA events, launch included; each call takes the next of several input
sets that together overflow the L2. Rows named `.../graph` time a captured graph of such calls: what
is left of a launch in a training step that is replayed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import common
import torch
import torch.nn.functional as F
from torch import Tensor

from sniper.ops.backends import TRITON
from sniper.ops.geometry import Geometry
from sniper.ops.layout import BlockLayout

BATCH, LENGTH = 20, 560  # 11,200 frames, one micro-batch of the published runs
L2_BYTES = 256 << 20
PASSES = ("fwd", "dgrad", "wgrad")

Call = Callable[[int], Tensor]


class Case:
    """One layer at one density: sets of inputs, and the calls of each provider on set i."""

    def __init__(self, layer: tuple[int, int, int], args: argparse.Namespace, density: float):
        c, n, taps = layer
        self.dtype, block = getattr(torch, args.dtype), args.block
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(n // block, taps, c // block, generator=generator)
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().topk(max(1, round(density * scores.numel()))).indices] = True
        self.layout = BlockLayout(mask.view(scores.shape), block).to("cuda")
        self.geometry = Geometry(taps, 1, taps // 2, taps // 2)
        self.taps = taps

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device="cuda").to(self.dtype)

        size = BATCH * LENGTH * (c + n) * self.dtype.itemsize
        self.sets = max(2, min(24, -(-L2_BYTES // size)))
        self.x = [random(BATCH, LENGTH, c) for _ in range(self.sets)]
        self.dy = [random(BATCH, LENGTH, n) for _ in range(self.sets)]
        self.bias = random(n)
        elements = self.layout.element_mask()
        self.weight = (random(n, taps, c) * elements).view(n, taps * c)
        self.elements = elements

    def sparse(self) -> dict[str, Call]:
        """Our kernels on `[B, T, C]`."""
        w, layout, g = self.weight, self.layout, self.geometry
        return {
            "fwd": lambda i: TRITON.fwd(self.x[i], w, self.bias, layout, g),
            "dgrad": lambda i: TRITON.dgrad(self.dy[i], w, layout, g, LENGTH),
            "wgrad": lambda i: TRITON.wgrad(self.dy[i], self.x[i], layout, g)[0],
        }

    def linear(self) -> dict[str, Call]:
        """cuBLAS; one tap only."""
        w = self.weight
        return {
            "fwd": lambda i: F.linear(self.x[i], w, self.bias),
            "dgrad": lambda i: self.dy[i] @ w,
            "wgrad": lambda i: self.dy[i].flatten(0, 1).t() @ self.x[i].flatten(0, 1),
        }

    def conv(self, channels_last: bool) -> dict[str, Call]:
        """cuDNN on `[B, C, T]`, or on our own memory as an image one row high."""
        w = self.weight.view(len(self.weight), self.taps, -1).permute(0, 2, 1)
        x, dy = ([t.transpose(1, 2) for t in ts] for ts in (self.x, self.dy))
        pad, ones = [self.geometry.pad_left], [1]
        if channels_last:
            w, x, dy = w.unsqueeze(2), [t.unsqueeze(2) for t in x], [t.unsqueeze(2) for t in dy]
            pad, ones = [0, *pad], [1, 1]
        else:
            w, x, dy = w.contiguous(), [t.contiguous() for t in x], [t.contiguous() for t in dy]

        def backward(i: int, *wanted: bool) -> tuple[Tensor, ...]:
            args = (dy[i], x[i], w, None, ones, pad, ones, False, [0] * len(pad), 1)
            return torch.ops.aten.convolution_backward(*args, [*wanted, False])

        forward = F.conv2d if channels_last else F.conv1d
        return {
            "fwd": lambda i: forward(x[i], w, self.bias, padding=pad),
            "dgrad": lambda i: backward(i, True, False)[0],
            "wgrad": lambda i: backward(i, False, True)[1],
        }

    def providers(self) -> dict[str, dict[str, Call]]:
        """By name; the dense ones are what a user of torch could call."""
        providers = {"sparse": self.sparse(), "conv1d": self.conv(False)}
        providers["conv2d_nhwc"] = self.conv(True)
        if self.taps == 1:
            providers["linear"] = self.linear()
        return providers

    def check(self, providers: dict[str, dict[str, Call]]) -> None:
        """Holds every provider against float32 on the first set."""
        exact = Case.__new__(Case)
        exact.__dict__.update(self.__dict__)
        exact.x, exact.dy = [self.x[0].float()], [self.dy[0].float()]
        exact.weight, exact.bias = self.weight.float(), self.bias.float()
        tf32 = self.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        tolerance = 2e-2 if self.dtype != torch.float32 else 3e-3 if tf32 else 1e-4
        wanted = exact.conv(False)
        for which in PASSES:
            # What everything is held against must not be rounded to tf32 itself.
            with torch.backends.cudnn.flags(allow_tf32=False):
                expected = self._common(which, "conv1d", wanted[which](0))
            for name, calls in providers.items():
                got = self._common(which, name, calls[which](0))
                common.check_close(f"{name} {which}", got, expected, tolerance)

    def _common(self, which: str, name: str, t: Tensor) -> Tensor:
        """As `[B, T, C]`, or as `[N, taps, C]` masked."""
        if name.startswith("conv"):
            t = (t.squeeze(2) if t.dim() == 4 else t).transpose(1, 2)
        return t.reshape(self.elements.shape) * self.elements if which == "wgrad" else t


def eager_times(calls: dict[str, Call], sets: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, one provider after the other in every round."""
    events: dict[str, list] = {name: [] for name in calls}
    for round_ in range(repeats + 3):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call(round_ % sets)
            end.record()
            torch.cuda.synchronize()
            if round_ >= 3:
                events[name].append((start, end))
    return {name: [s.elapsed_time(e) for s, e in pairs] for name, pairs in events.items()}


def graph_times(calls: dict[str, Call], sets: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds per call of a captured graph that calls on every set once."""
    graphs = {}
    for name, call in calls.items():
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for i in range(sets):
                call(i)
    replays = {name: lambda _, graph=graph: graph.replay() for name, graph in graphs.items()}
    return {n: [t / sets for t in ts] for n, ts in eager_times(replays, 1, repeats).items()}


def run(layer: tuple[int, int, int], args: argparse.Namespace, density: float) -> list[common.Row]:
    """Rows of every provider and pass, launched one by one and from a graph."""
    case = Case(layer, args, density)
    providers = case.providers()
    case.check(providers)
    rows = []
    for which in PASSES:
        calls = {name: provider[which] for name, provider in providers.items()}
        if getattr(args, "tune", False):
            operands = {
                "fwd": (case.x[0], case.weight, case.bias),
                "wgrad": (case.dy[0], case.x[0]),
            }
            operands["dgrad"] = (case.dy[0], case.weight, LENGTH)
            print(which, TRITON.tune(which, case.layout, case.geometry, *operands[which]))
        for suffix, timer in (("", eager_times), ("/graph", graph_times)):
            cuts = {
                n: common.percentiles(t) for n, t in timer(calls, case.sets, args.repeats).items()
            }
            dense = min(c[1] for name, c in cuts.items() if name != "sparse")
            what = common.describe_layer(layer, (BATCH, LENGTH), density, args)
            rows += common.rows(cuts, dense, torch.device("cuda"), suffix, pass_=which, **what)
    return rows


def main(layers: tuple[tuple[int, int, int], ...], args: argparse.Namespace) -> None:
    """Prints a line a layer and density; appends the rows."""
    for density in args.densities:
        for layer in layers:
            rows = run(layer, args, density)
            _summarise(layer, args, density, rows)
            if not args.no_save:
                common.append_rows("layers_cuda", rows)


def _summarise(layer, args, density: float, rows: list[common.Row]) -> None:
    flops = 2 * BATCH * LENGTH * math.prod(layer) * density
    name = "-".join(map(str, layer))
    for provider in ("sparse", "sparse/graph"):
        ours = {r.pass_: r for r in rows if r.provider == provider}
        cells = "  ".join(
            f"{w} {1e3 * r.p50_ms:6.0f} us {flops / r.p50_ms / 1e9:4.0f} TFLOP/s "
            f"{r.ratio_to_dense:5.2f}x"
            for w, r in ours.items()
        )
        dense = sum(r.p50_ms * r.ratio_to_dense for r in ours.values())
        all_ = dense / sum(r.p50_ms for r in ours.values())
        print(f"{name:11} b{args.block} {density:4.2f} {provider:12} {cells}  all {all_:5.2f}x")
