# SPDX-License-Identifier: Apache-2.0
"""Sections of `gpu_suite.py` about single kernels: compiling, rates of the machine, layers, tile
sizes, attention, masks. Each yields one row after the other; `dry` is a tiny run on the CPU.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sniper.ops import dispatch, selfcheck_cases, timings
from sniper.ops.attention import attention_of_heads
from sniper.ops.backends import TRITON
from sniper.ops.backends.triton import tuning
from sniper.ops.bits import pack_bits, unpack_bits
from sniper.ops.geometry import NO_EPILOGUE, Geometry
from sniper.ops.layout import BlockLayout
from sniper.ops.rebuild import Change, rebuild, rebuild_reference

Row = dict[str, Any]
PASSES = ("fwd", "dgrad", "wgrad")
# in, out, taps: attention projections, the feed-forward blocks of two models, a postnet.
LAYERS = ((384, 384, 1), (384, 1536, 3), (1536, 384, 3), (256, 1024, 9), (256, 256, 5))
DENSITIES = (0.2, 0.5)
DROPOUT = 0.2  # of attention, as the default model has it
BATCH, LENGTH = 20, 560


def device_of(dry: bool) -> torch.device:
    return torch.device("cpu" if dry else "cuda")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(
    call: Callable[[], Any], device: torch.device, repeats: int = 20, from_memory: bool = True
) -> float:
    """Median time of a call on the device; of launches that the host does not hold up.

    Args:
        from_memory: inputs are not in the L2, as in a step whose tensors do not fit into it.
    """
    call()
    wait(device)
    if device.type != "cuda":
        return 1e3 * statistics.median(_seconds(call) for _ in range(3))
    on_host = min(_seconds(call), 0.02)
    wait(device)
    size = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(2 * size, dtype=torch.uint8, device=device)
    marks = []
    # 10 ms at least, and twice what the host takes: it is ahead by then.
    torch.cuda._sleep(max(20_000_000, int(2 * repeats * on_host * 2e9)))
    for _ in range(repeats):
        if from_memory:
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def host_milliseconds(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """What the host spends on a call whose result it does not wait for."""
    call()
    wait(device)
    seconds = _seconds(lambda: [call() for _ in range(repeats)])
    wait(device)
    return 1e3 * seconds / repeats


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Layer:
    """One layer's tensors and the arguments of its passes."""

    def __init__(self, layer: tuple[int, int, int], density: float, dry: bool):
        device, self.name = device_of(dry), "-".join(map(str, layer))
        if dry:
            layer = (32, 32, layer[2])
        (c, n, taps), block = layer, 16 if dry else 64
        batch, length = (2, 20) if dry else (BATCH, LENGTH)
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(n // block, taps, c // block, generator=generator)
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().topk(max(1, round(density * scores.numel()))).indices] = True
        self.density, self.block = density, block
        self.layout = BlockLayout(mask.view(scores.shape), block).to(device)
        self.geometry = Geometry(taps, 1, taps // 2, taps // 2)
        self.flops = 2 * batch * length * c * n * taps * density
        dtype = torch.float32 if dry else torch.bfloat16

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        x, dy, bias = random(batch, length, c), random(batch, length, n), random(n)
        weight = random(n, taps, c) * self.layout.element_mask()
        weight = weight.view(n, taps * c)
        self.args: dict[str, tuple] = {
            "fwd": (x, weight, bias, NO_EPILOGUE),
            "dgrad": (dy, weight, length),
            "wgrad": (dy, x, False),
        }

    def run(self, which: str) -> Any:
        """A pass by whichever backend is chosen."""
        return dispatch.choose(which, self.layout, self.geometry, *self.args[which])()

    def operands(self, which: str) -> tuple:
        """What `TRITON.tune` and `run_with` take."""
        return self.args[which][: 2 if which == "wgrad" else 3]

    def what(self) -> Row:
        return {"layer": self.name, "block": self.block, "density": self.density}


def compile_kernels(dry: bool) -> Iterator[Row]:
    """Compiles and checks what later sections launch, on all cores at once."""
    jobs = _jobs(dry)
    workers = 2 if dry else max(1, min(os.cpu_count() or 1, len(jobs)))
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(workers, spawn, max_tasks_per_child=None if dry else 4) as pool:
        started = {pool.submit(_compile, job, dry): job for job in jobs}
        for done in as_completed(started):
            row: Row = {"job": " ".join(map(str, started[done]))}
            try:
                row |= done.result()
            except BrokenProcessPool as error:
                row["error"] = f"a process was lost: {error}"
            yield row


def _jobs(dry: bool) -> list[tuple]:
    if dry:
        return [("family", "fp32", 16, "elementwise"), ("layer", 0, 0.5, "fwd")]
    names = [f"{path} {op}" for path in ("tma", "pointer") for op in ("product", "wgrad")]
    names += ["elementwise", "recorded step"]
    kinds = itertools.product(("bf16", "tf32"), (64, 128), names)
    layers = itertools.product(range(len(LAYERS)), DENSITIES[:1], PASSES)
    return [("family", *k) for k in kinds] + [("layer", *k) for k in layers]


def _compile(job: tuple, dry: bool) -> Row:
    """In a process of its own."""
    started = time.monotonic()
    row: Row = {}
    try:
        if job[0] == "family":
            _, dtype, block, name = job
            torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
            check = selfcheck_cases.families(dtype, block, device_of(dry)).get(name)
            row["largest error"] = check() if check is not None else "no such path here"
        else:
            layer = Layer(LAYERS[job[1]], job[2], dry)
            which, operands = job[3], layer.operands(job[3])
            tilings = tuning.tilings(which, layer.layout, *operands[:2])
            for tiling in tilings[:1] if dry else tilings:
                TRITON.run_with(tiling, which, layer.layout, layer.geometry, *operands)
            row["tilings"] = len(tilings)
        wait(device_of(dry))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row | {"seconds": round(time.monotonic() - started, 2)}


def rates(dry: bool) -> Iterator[Row]:
    """Bytes a second of copies, in the L2 and past it, and operations of products."""
    device = device_of(dry)
    l2 = 0 if dry else torch.cuda.get_device_properties(device).L2_cache_size
    for place, size in (("L2", l2 // 4 or 1 << 16), ("memory", 16 * l2 or 1 << 20)):
        source = torch.empty(size, dtype=torch.uint8, device=device).random_()
        target = torch.empty_like(source)
        ms = milliseconds(lambda a=source, b=target: b.copy_(a), device, from_memory=False)
        yield {"what": f"copy in {place}", "MiB": size / 2**20, "TB/s": 2 * size / ms / 1e9}
    for dtype in (torch.bfloat16, torch.float32):
        n = 64 if dry else 8192
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        for tf32 in (False, True) if dtype == torch.float32 else (False,):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            ms = milliseconds(lambda a=a, b=b: a @ b, device, repeats=5)
            name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
            yield {"what": f"product in {name}", "n": n, "TFLOP/s": 2 * n**3 / ms / 1e9}
        torch.backends.cuda.matmul.allow_tf32 = False


def layers(dry: bool) -> Iterator[Row]:
    """What is chosen for each pass in a recorded step and launched one by one, with its times."""
    device = device_of(dry)
    for shape, density in itertools.product(LAYERS, DENSITIES):
        layer = Layer(shape, density, dry)
        for which in PASSES:
            row: Row = {**layer.what(), "pass": which}
            with timings.device_time():
                layer.run(which)
                row["recorded"], times, _ = dispatch.last_runs(layer.layout)[which]
            row |= {f"{name} device ms": 1e3 * t for name, t in (times or {}).items()}
            layer.run(which)
            row["launched"] = dispatch.last_runs(layer.layout)[which][0]
            for name, backend in dispatch.BACKENDS.items():
                if backend in dispatch.candidates(which, layer.layout, layer.args[which][0]):
                    with dispatch.use_backend(name):
                        row[f"{name} host ms"] = host_milliseconds(
                            partial(layer.run, which), device
                        )
            best = min((times or {"": math.inf}).values())
            row["TFLOP/s"] = layer.flops / best / 1e12
            yield row


def tiles(dry: bool) -> Iterator[Row]:
    """Every tile size of every pass beside dense, on the device's clock."""
    device = device_of(dry)
    shapes = LAYERS[:1] if dry else LAYERS[1:4]
    for shape, which in itertools.product(shapes, PASSES):
        layer = Layer(shape, DENSITIES[0], dry)
        operands = layer.operands(which)
        rest = (layer.layout, layer.geometry)
        with dispatch.use_backend("dense"):
            dense = milliseconds(partial(layer.run, which), device)
        found = tuning.tilings(which, layer.layout, *operands[:2])
        for tiling in found[:1] if dry else found:
            row: Row = {**layer.what(), "pass": which, "tiling": str(tiling), "dense ms": dense}
            try:
                call = partial(TRITON.run_with, tiling, which, *rest, *operands)
                row["ms"] = milliseconds(call, device)
            except Exception as error:  # out of shared memory, refused by the compiler
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield row


def attention(dry: bool) -> Iterator[Row]:
    """Ours and each of torch's implementations, forward with backward, with and without a mask and
    dropout; what is compared has no dropout.
    """
    device, dtype = device_of(dry), torch.float32 if dry else torch.bfloat16
    batch, heads, length, channels = (2, 2, 16, 8) if dry else (BATCH, 2, LENGTH, 192)
    shape = (batch, length, heads, channels)
    leaves = [
        torch.randn(shape, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    key_mask = torch.ones(batch, length, dtype=torch.bool, device=device)
    key_mask[-1, length // 2 :] = False
    exact = [t.detach().double() for t in leaves]
    names = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    for mask, p in itertools.product((None, key_mask), (0.0, DROPOUT)):
        added = None if mask is None else mask[:, None, None]
        wanted = F.scaled_dot_product_attention(*exact, attn_mask=added)
        for name in names if dry else ("ours", *names):
            row: Row = {"implementation": name, "masked": mask is not None, "dropout": p}
            run = partial(_attend, name, leaves, mask)
            try:
                row["error"] = float((run(0.0).double() - wanted).abs().max() / wanted.abs().max())
                row["ms"] = milliseconds(partial(run, p), device)
            except RuntimeError as error:
                row["cannot"] = " ".join(str(error).split())[:200]
            yield row


def _attend(name: str, leaves: list[Tensor], mask: Tensor | None, p: float) -> Tensor:
    """The result, after a backward pass."""
    if name == "ours":
        y = attention_of_heads(mask, leaves[0], leaves[1], leaves[2], p)
    else:
        added = None if mask is None else mask[:, None, None]
        with sdpa_kernel(getattr(SDPBackend, name)):
            y = F.scaled_dot_product_attention(*leaves, attn_mask=added, dropout_p=p)
    # As it lies in a model: the heads of a row side by side.
    dy = torch.ones_like(y.transpose(1, 2)).transpose(1, 2)
    torch.autograd.grad(y, leaves, dy)
    return y.detach()


def masks(dry: bool) -> Iterator[Row]:
    """The extension's mask kernels, each against its reference; small, for compute-sanitizer."""
    from sniper.sparsity.masking import Fixed, Following, nested_masks, nested_masks_reference

    device = device_of(dry)
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 3, 5), "b": (7, 1, 9), "c": (1, 1, 1)}
    scores = {k: torch.rand(s, generator=generator).to(device) for k, s in shapes.items()}
    for cap in (Fixed(0.9), Following(0.1)):
        got = nested_masks(scores, [0.8, 0.4], cap)
        wanted = nested_masks_reference(scores, [0.8, 0.4], cap)
        same = all(
            torch.equal(got.masks[s][k].cpu(), wanted.masks[s][k].cpu())
            for s in got.masks
            for k in shapes
        )
        yield _agreed(f"nested masks, {cap}", same)
    mask = scores["a"] > 0.5
    yield _agreed("bits", torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask))
    yield _agreed("index arrays and weights", _rebuilt_alike(device, generator))


def _rebuilt_alike(device: torch.device, generator: torch.Generator) -> bool:
    """A change of masks with more than 256 block rows, by the extension and by torch."""
    shape, block = (300, 6), 16
    before, after = (torch.rand(shape, generator=generator).to(device) < p for p in (0.3, 0.6))
    after |= before
    weight = torch.randn(shape[0] * block, shape[1] * block, generator=generator).to(device)
    weight *= BlockLayout(before, block).element_mask().view(weight.shape)
    init = torch.randn(weight.shape, generator=generator).to(device)
    states = []
    for bring_about in (rebuild, rebuild_reference):
        layout, own = BlockLayout(before, block), weight.clone()
        bring_about([Change(layout, own, after, int(after.sum()), init)])
        states.append([own, *layout.written()])
    return all(map(torch.equal, *states))


def _agreed(what: str, same: bool) -> Row:
    if not same:
        raise SystemExit(f"{what}: differs from the reference")
    return {"what": what, "agrees": True}
