# SPDX-License-Identifier: Apache-2.0
"""Sections of `gpu_suite.py` about whole training steps, on generated features: dense beside sparse
and compiled, where a step spends its time, what is recorded anew, a short training run. Each yields
one row after the other; `dry` is a tiny run on the CPU.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import bench_train_step as bench
import common
import torch
from gpu_kernels import Row, device_of, wait

from sniper import LearningRateScale, Sniper, densify
from sniper.ops import timings
from sniper.ops.aside import Aside
from sniper.training.graphs import CudaRecorder, StepGraphs
from sniper.training.step import TrainingStep
from sniper.tts.corpus.batch import Batch
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config
from sniper.tts.model.variance import PredictorConfig

SPARSITIES = (0.8, 0.5, 0.0)
SCHEDULE = {0: 0.8, 1: 0.4, 2: 0.0}
TRAINED, WARM_UP = 60, 20
SPLITS = ("train", "valid")
# Of the trainer in a dry run.
DRY = ["train.device=cpu", "train.batches_per_epoch=1", "train.max_frames=1300", "train.workers=0"]
DRY += ["model.d_model=32", "model.ffn_dim=64", "model.encoder_layers=1", "model.decoder_layers=1"]
DRY += ["model.postnet_layers=2", "model.postnet_channels=32", "sparsity.block_size=16"]
DRY += [
    f"model.{name}_predictor={{layers: 1, channels: 32}}"
    for name in ("duration", "pitch", "energy")
]


def make_model(dry: bool) -> FastSpeech2:
    torch.manual_seed(0)
    small: dict[str, Any] = {}
    if dry:
        predictor = PredictorConfig(layers=1, channels=32)
        small = {f"{name}_predictor": predictor for name in ("duration", "pitch", "energy")}
        small |= {"d_model": 32, "heads": 2, "ffn_dim": 64, "postnet_channels": 32}
        small |= {"encoder_layers": 1, "decoder_layers": 1, "postnet_layers": 2}
    return FastSpeech2(FastSpeech2Config(vocab_size=bench.VOCABULARY, **small)).to(device_of(dry))


def make_batch(dry: bool) -> Batch:
    return bench.make_batch(2, tokens=8) if dry else _pinned(bench.UTTERANCES["cuda"])


def longer_batch(dry: bool) -> Batch:
    """More frames than the 2,048 for which positions are laid out."""
    return bench.make_batch(1, 300, tokens=8) if dry else _pinned(4, 30)


def _pinned(*sizes: int) -> Batch:
    return bench.make_batch(*sizes).pin_memory()


def _block(dry: bool) -> int:
    return 16 if dry else 64


def _precision(dry: bool) -> str:
    return "fp32" if dry else "bf16"


def _sparse(model: FastSpeech2, batch: Batch, sparsity: float, dry: bool) -> bench.Step:
    return bench.sparse(model, batch, sparsity, _block(dry), _precision(dry))


def step_times(dry: bool) -> Iterator[Row]:
    """Plain torch, our model without masks and with them, in turn; the last two recorded."""
    model, batch, device = make_model(dry), make_batch(dry), device_of(dry)
    eager = bench.Step(bench.plain(model), batch, _precision(dry), graphs=False)
    dense = bench.Step(densify(copy.deepcopy(model)), batch, _precision(dry))
    for sparsity in SPARSITIES[:1] if dry else SPARSITIES:
        sides = {"eager": eager, "dense": dense}
        sides["sparse"] = _sparse(model, batch, sparsity, dry)
        yield from _timed(sides, batch, {"sparsity": sparsity}, device, 2 if dry else 21)


def torch_compile(dry: bool) -> Iterator[Row]:
    """Compiles the dense model, so that `compiled_step` finds it on the disk: it takes a minute."""
    yield _compiled(make_model(dry), make_batch(dry), dry)[1]


def compiled_step(dry: bool) -> Iterator[Row]:
    """The dense model through torch.compile beside ours at 80 %."""
    model, batch, device = make_model(dry), make_batch(dry), device_of(dry)
    compiled, row = _compiled(model, batch, dry)
    yield row
    sides = {"compiled": compiled, "sparse": _sparse(model, batch, SPARSITIES[0], dry)}
    what = {"sparsity": SPARSITIES[0], **_compile_options(dry)}
    yield from _timed(sides, batch, what, device, 2 if dry else 21)


def _compiled(model: FastSpeech2, batch: Batch, dry: bool) -> tuple[bench.Step, Row]:
    plain = bench.plain(model)
    plain.compile(**_compile_options(dry))
    compiled = bench.Step(plain, batch, _precision(dry), graphs=False)
    started = time.monotonic()
    compiled()
    wait(device_of(dry))
    return compiled, {"compiled in seconds": round(time.monotonic() - started, 1)}


def _compile_options(dry: bool) -> dict[str, str]:
    return {"backend": "eager"} if dry else {"mode": "reduce-overhead"}


def _timed(
    sides: dict[str, bench.Step], batch: Batch, what: Row, device: torch.device, repeats: int
) -> Iterator[Row]:
    for name, step in sides.items():
        for _ in range(3):  # optimizer state, the choice of backends, graphs
            loss = step()
        if not loss.isfinite():
            raise SystemExit(f"{name}: the loss is {float(loss)}: nothing is timed that is wrong")
    times = common.time_side_by_side(sides, repeats, lambda: wait(device))
    frames, ours = int(batch.mel_lengths.sum()), common.percentiles(times["sparse"])[1]
    for name, each in times.items():
        p20, p50, p80 = common.percentiles(each)
        row = {**what, "step": name, "p20 ms": p20, "p50 ms": p50, "p80 ms": p80}
        row |= {"frames/s": 1e3 * frames / p50, "ratio to sparse": p50 / ours}
        parts = common.time_side_by_side(_parts(sides[name]), repeats, lambda: wait(device))
        row |= {f"{part} ms": common.percentiles(each)[1] for part, each in parts.items()}
        yield row | {"running on ms": _running_on(sides[name], repeats, device)}


def _running_on(step: bench.Step, repeats: int, device: torch.device) -> float:
    """Milliseconds a step where nobody waits for one, as in training: the best of three rows."""
    times = []
    for _ in range(3):
        wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        wait(device)
        times.append(1e3 * (time.perf_counter() - started) / repeats)
    return min(times)


def _parts(step: bench.Step) -> dict[str, Callable[[], object]]:
    """Gradients, and what follows them."""

    def update() -> None:
        step.step.clip()
        step.step.update()

    return {"gradients": lambda: step.step.backward(step.batch, 1.0), "update": update}


def profile(dry: bool) -> Iterator[Row]:
    """The kernels that take most of a dense step and of a sparse one."""
    model, batch, device = make_model(dry), make_batch(dry), device_of(dry)
    dense = bench.Step(densify(copy.deepcopy(model)), batch, _precision(dry))
    sides = {"dense": dense, "sparse": _sparse(model, batch, SPARSITIES[0], dry)}
    kind = torch.profiler.ProfilerActivity
    field = f"self_{'cpu' if dry else 'device'}_time_total"
    for name, step in sides.items():
        for _ in range(3):
            step()
        wait(device)
        with torch.profiler.profile(activities=[kind.CPU if dry else kind.CUDA]) as seen:
            step()
            wait(device)
        events = sorted(seen.key_averages(), key=lambda e: getattr(e, field), reverse=True)
        total = sum(getattr(e, field) for e in events) or 1.0
        row: Row = {"step": name, "kernel": "all", "us": total}
        yield row | {"calls": sum(e.count for e in events)}
        for event in events[:40]:
            us = getattr(event, field)
            row = {"step": name, "kernel": event.key[:120], "us": us, "calls": event.count}
            yield row | {"share": us / total}


class _Again:
    """Runs what it was given to record: in a dry run."""

    device = torch.device("cpu")
    aside: Aside | None = None

    def warm_up(self, step) -> None:
        step()

    def bring(self, own, given) -> None:
        for tensor, source in zip(own, given, strict=True):
            tensor.copy_(source)

    def clear(self) -> None:
        pass

    def record(self, step):
        values: dict[str, torch.Tensor] = {}  # recording computes nothing

        def replay() -> None:
            for name, value in step().items():
                if name in values:
                    values[name].copy_(value)
                else:
                    values[name] = value.clone()

        return replay, values


def recording(dry: bool) -> Iterator[Row]:
    """Steps are recorded anew while values of older ones are held, and for longer sequences than
    any before; a replay gives what a step without graphs gives.
    """
    device = device_of(dry)
    torch.manual_seed(0)
    model = make_model(dry).eval()  # nothing is drawn: both ways compute the same
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recorder = _Again() if dry else CudaRecorder(device)
    schedule = {0: 0.8, 1: 0.0}
    sniper = Sniper(model, schedule, block_size=_block(dry))
    batch, longer = make_batch(dry), longer_batch(dry)
    sniper.score([batch.to(device)], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
    made = {
        "graphs": TrainingStep(
            model, optimizer, _precision(dry), recorder=recorder, must_record=True
        ),
        "eager": TrainingStep(model, optimizer, _precision(dry)),
    }
    graphs = cast(StepGraphs, made["graphs"].graphs)
    kept, frames = [], [batch.mel.shape[1], longer.mel.shape[1]]
    yield {"frames": frames, "positions": _positions(model)}
    for epoch in schedule:
        sniper.step(epoch, optimizer)
        for name, each in (("usual", batch), ("longer", longer), ("usual", batch)):
            before = graphs.recordings
            losses = {}
            for way, step in made.items():
                optimizer.zero_grad(set_to_none=False)
                values = step.backward(each, 1.0)
                losses[way] = float(values["total"])
                gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
                norm = torch.stack(gradients).norm()
                losses[f"{way} gradient"] = float(norm)
                kept.append(values)
            timings.outdate()  # as a choice that is made anew
            row: Row = {"epoch": epoch, "batch": name, "recorded": graphs.recordings - before}
            yield row | losses
            # Other kernels may run in a graph than without. Norms behind pruned layers, whose rows
            # are nearly constant, enlarge their rounding on its way back.
            for what, tolerance in (("", 1e-2), (" gradient", 5e-2)):
                ours, theirs = losses[f"graphs{what}"], losses[f"eager{what}"]
                if not abs(ours - theirs) <= tolerance * abs(theirs):
                    raise SystemExit(f"{name}{what}: {ours} from a graph, {theirs} without")
    yield {"positions": _positions(model), "values held": len(kept)}


def _positions(model: FastSpeech2) -> list[int]:
    return [len(b) for name, b in model.named_buffers() if name.endswith("encoding")]


def trainer(corpus: Path, dry: bool) -> Iterator[Row]:
    """Epochs of the trainer on prepared speech, at 80 %, without masks and dense: two of each, of
    which the first compiles, chooses and records.
    """
    from sniper.training.config import load
    from sniper.training.device import set_up_torch
    from sniper.training.trainer import Trainer
    from sniper.tts.corpus.dataset import FeatureDataset

    settings = ["train.accumulation=1", "train.warmup=200", "sparsity.score_batches=4"]
    settings += DRY if dry else ["train.batches_per_epoch=240", "train.precision=bf16"]
    schedule = ["sparsity.schedule_fractions=null", "sparsity.schedule={0: 0.8, 2: 0.0}"]
    arms = {"sniper": ["train.epochs=4", *schedule], "dense": ["train.epochs=2"]}
    for name, own in arms.items():
        with tempfile.TemporaryDirectory() as folder:
            config = load(f"ljspeech-{name}", [*settings, *own, f"output={folder}"])
            set_up_torch(config.train)
            data, held_out = (FeatureDataset(corpus / f"{s}.safetensors") for s in SPLITS)
            run = Trainer(config, data, held_out, data.info)
            run.score()
            recorded = 0
            while not run.done:
                started, before = time.monotonic(), recorded
                row = run.run_epoch()
                recorded = 0 if run.step.graphs is None else run.step.graphs.recordings
                yield {
                    "arm": name,
                    "epoch": row["epoch"],
                    "sparsity": row["sparsity"],
                    "loss": row["train"]["total"],
                    "frames/s": row["frames_per_second"],
                    "padding": row["padding"],
                    "recorded": recorded - before,
                    "training s": row["seconds"],
                    "epoch s": time.monotonic() - started,
                }
            run.close()


def train(dry: bool) -> Iterator[Row]:
    """A schedule of 80 % to 0 over generated features: losses must fall, at every sparsity."""
    model, batch, device = make_model(dry).train(), make_batch(dry), device_of(dry)
    scale = LearningRateScale(max=10.0)
    sniper = Sniper(model, SCHEDULE, block_size=_block(dry), lr_scale=scale)
    sniper.score([batch.to(device)], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
    step = bench.Step(model, batch, _precision(dry), sniper)
    count, warm_up = (96, 2) if dry else (TRAINED, WARM_UP)
    for epoch, sparsity in SCHEDULE.items():
        sniper.step(epoch, step.optimizer)
        losses = []
        for number in range(count):
            if number == warm_up:  # compiled, backends chosen, graphs recorded
                wait(device)
                started = time.perf_counter()
            losses.append(step().clone())
        wait(device)
        rate = (count - warm_up) * int(batch.mel_lengths.sum()) / (time.perf_counter() - started)
        # Means of a third: of one step, dropout's share is as large as what a few steps gain.
        parts = torch.stack(losses).tensor_split(3)
        first, last = float(parts[0].mean()), float(parts[-1].mean())
        yield {"sparsity": sparsity, "first loss": first, "last loss": last, "frames/s": rate}
        if not last < first:
            raise SystemExit(f"the loss did not fall at sparsity {sparsity}")
