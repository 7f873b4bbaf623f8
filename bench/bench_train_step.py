# SPDX-License-Identifier: Apache-2.0
"""One training step of an ESPnet-size FastSpeech2, block-sparse beside dense ones.

python bench/bench_train_step.py --device cpu [--sparsities 0.8 0.5 0] [--repeats 7]
    [--espnet] [--profile | --memory]
python bench/bench_train_step.py --device cuda [--precision bf16]

Forward, backward, gradient clipping and optimizer on utterances of 90 tokens and 540 frames, 8 on a
CPU and 21 on a GPU. `eager` is the same model of torch's functions alone: nn.Linear, nn.Conv1d,
nn.Dropout, LayerNorm, attention and torch's fused Adam. `dense` is our model without masks, with
our dropout, attention, norms and optimizer, and `sparse` with them; on a GPU both are replayed as
CUDA graphs. `espnet`, with --espnet on a CPU, is ESPnet's own class with torch's fused Adam. On a
CPU each has a process of its own, as a training has: what one frees would be memory that another
has to make do with.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from pathlib import Path
from typing import cast

import common
import torch
import torch.nn.functional as F
from espnet_step import EspnetStep
from torch import Tensor, nn

from sniper import LearningRateScale, Sniper, densify
from sniper.layers import Dropout
from sniper.ops import keep_freed_memory
from sniper.optim import Adam
from sniper.training.step import TrainingStep, peak_memory, pick_recorder
from sniper.tts.corpus.batch import Batch
from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config
from sniper.tts.model.transformer import SelfAttention

TOKENS, FRAMES_A_TOKEN, VOCABULARY = 90, 6, 78
UTTERANCES = {"cpu": 8, "cuda": 21}
KINDS = ("eager", "dense", "sparse")
ESPNET = "espnet"


def make_batch(
    utterances: int = 8, frames_a_token: int = FRAMES_A_TOKEN, tokens: int = TOKENS
) -> Batch:
    """Random speech of equal lengths; the end-of-sentence token has no frames."""
    generator = torch.Generator().manual_seed(0)
    frames = tokens * frames_a_token
    durations = torch.full((utterances, tokens + 1), frames_a_token)
    durations[:, -1] = 0
    shape = (utterances, tokens + 1)
    return Batch(
        ids=[str(i) for i in range(utterances)],
        tokens=torch.randint(1, VOCABULARY, shape, generator=generator),
        token_lengths=torch.full((utterances,), tokens + 1),
        mel=torch.randn(utterances, frames, 80, generator=generator),
        mel_lengths=torch.full((utterances,), frames),
        durations=durations,
        pitch=torch.randn(shape, generator=generator),
        energy=torch.randn(shape, generator=generator),
    )


class Step:
    """A model with its optimizer; calling it trains one step.

    Args:
        model: on its device.
        batch: in the host's memory, pinned for a GPU, as a data loader gives it.
        precision: of `TrainConfig`.
        sniper: puts its masks on; None: dense.
        graphs: whether a GPU replays the step.
    """

    def __init__(
        self,
        model: FastSpeech2,
        batch: Batch,
        precision: str,
        sniper: Sniper | None = None,
        graphs: bool = True,
    ):
        self.batch, self.sniper = batch, sniper
        device = next(model.parameters()).device
        if not graphs:
            self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        else:  # as `Trainer` has it
            clear = pick_recorder(device, "auto") is None
            self.optimizer = Adam(model.parameters(), lr=1e-4, clear=clear, fused=True)
        if sniper is not None:
            sniper.step(0, self.optimizer)
        self.step = TrainingStep(
            model.train(),
            self.optimizer,
            precision,
            grad_clip=1.0,
            stage=lambda: None if sniper is None else sniper.sparsity,
            recorder=pick_recorder(device, "auto" if graphs else "off"),
            must_record=True,  # what is timed is what it is called
        )

    def __call__(self) -> torch.Tensor:
        loss = self.step.backward(self.batch, 1.0)["total"]
        self.step.clip()
        self.step.update()
        return loss


class PlainDropout(nn.Dropout):
    """A class of its own, which our fused functions do not know: so they call what they are given,
    this and torch's norms.
    """


class PlainAttention(SelfAttention):
    """The same layer by torch's attention."""

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """`x` `[B, T, C]`, `key_mask` bool `[B, T]`, true where a key counts."""
        projected = (self.query(x), self.key(x), self.value(x))
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in projected)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, p)
        return self.out(y.transpose(1, 2).flatten(2))


PLAIN = {Dropout: PlainDropout, SelfAttention: PlainAttention}


def plain(model: FastSpeech2) -> FastSpeech2:
    """The model as a user of torch would have it."""
    model = densify(copy.deepcopy(model))
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
        if module.__dict__.pop("_conv_forward", None) and isinstance(module, nn.Conv1d):
            module.weight.data = module.weight.data.contiguous()
    return model


def sparse(
    model: FastSpeech2, batch: Batch, sparsity: float, block: int, precision: str = "fp32"
) -> Step:
    """A copy of the model under SNIPER at one sparsity."""
    model = copy.deepcopy(model)
    # At 0 the schedule starts above it, so that layers are masked and then all active.
    schedule = {0: sparsity} if sparsity else {0: 0.5, 1: 0.0}
    sniper = Sniper(model, schedule, block_size=block, lr_scale=LearningRateScale(max=10.0))
    device = next(model.parameters()).device
    sniper.score([batch.to(device)], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
    step = Step(model, batch, precision, sniper)
    if not sparsity:
        sniper.step(1, step.optimizer)
    return step


def make_step(
    kind: str, model: FastSpeech2, batch: Batch, sparsity: float, args: argparse.Namespace
) -> Step | EspnetStep:
    """A step of one of `KINDS`, or of ESPnet."""
    if kind == ESPNET:
        size = sum(p.numel() for p in model.parameters())
        return EspnetStep(batch, VOCABULARY, size, args.device)
    if kind == "sparse":
        return sparse(model, batch, sparsity, args.block, args.precision)
    if kind == "dense":
        return Step(densify(copy.deepcopy(model)), batch, args.precision)
    return Step(plain(model), batch, args.precision, graphs=False)


class Served:
    """A step in a process of its own; calling it trains one step there and gives the loss."""

    def __init__(self, kind: str, sparsity: float, args: argparse.Namespace):
        self._process = subprocess.Popen(
            child(args, kind, "--serve", "--sparsities", str(sparsity)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self) -> Tensor:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a step has failed, see above")
        return torch.tensor(float(line))

    def end(self) -> None:
        """Waits for the process's end."""
        self._process.communicate()


def serve(step: Step | EspnetStep) -> None:
    """One step and its loss for each line that comes in."""
    for _ in sys.stdin:
        print(float(step()), flush=True)


def child(args: argparse.Namespace, kind: str, *options: str) -> list[str]:
    """The command of this file that makes one kind of step alone."""
    shared = ["--device", args.device, "--precision", args.precision, "--block", args.block]
    return [sys.executable, __file__, *map(str, shared), "--only", kind, *options]


def profile(step: Step, device: str) -> None:
    """Prints where one step spends its time."""
    step()
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as p:
        step()
        synchronize(device)
    print(p.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30))


def synchronize(device: str) -> None:
    """Waits for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def memory(args: argparse.Namespace) -> None:
    """Prints the peak memory of steps of each kind, each in a fresh process: of its third to fifth
    step, and with the set-up (the model, scoring, the first steps).
    """

    def peaks(kind: str, *options: str) -> tuple[float, float]:
        command = child(args, kind, *options)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        of_steps, of_all = map(float, done.stdout.split())
        return of_steps, of_all

    found = {"eager": peaks("eager"), "dense": peaks("dense")}
    for sparsity in args.sparsities:
        found[f"{sparsity:.0%} sparse"] = peaks("sparse", "--sparsities", str(sparsity))
    for name, (of_steps, of_all) in found.items():
        shares = [of_steps / found[kind][0] for kind in ("eager", "dense")]
        print(
            f"{name}: peak of a step {of_steps:.2f} GiB ({shares[0]:.2f} of eager, "
            f"{shares[1]:.2f} of dense), with set-up {of_all:.2f} GiB",
            flush=True,
        )


def only(model: FastSpeech2, batch: Batch, args: argparse.Namespace) -> None:
    """Steps of one kind as they are asked for, or five and the peak memory in GiB of the last three
    and of the process.
    """
    step = make_step(args.only, model, batch, args.sparsities[0], args)
    # All sides are copies of it; whoever called still holds it.
    for p in model.parameters():
        p.data = p.data.new_empty(0)
    if args.serve:
        return serve(step)
    for _ in range(2):  # optimizer state, the choice of backends
        step()
    device = torch.device(args.device)
    before = peak_memory(device)
    forget_peak(device)
    for _ in range(3):
        step()
    steps = peak_memory(device) if device.type == "cuda" else resident_peak()
    print(f"{steps / 2**30:.3f} {max(before, peak_memory(device)) / 2**30:.3f}")


def forget_peak(device: torch.device) -> None:
    """From now on peaks are counted anew."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise SystemExit(f"--memory: expected Linux with /proc/self/clear_refs: {error}") from None


def resident_peak() -> int:
    """Bytes: the most that was resident since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], help="GPU: bf16")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.5, 0.0])
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--profile", action="store_true", help="of one sparse step, then stop")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of each step in a process of its own"
    )
    parser.add_argument("--espnet", action="store_true", help="CPU: ESPnet's own class beside them")
    parser.add_argument("--only", choices=[*KINDS, ESPNET], help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    if args.espnet and cuda:
        parser.error("--espnet: expected --device cpu")
    args.precision = args.precision or ("bf16" if cuda else "fp32")
    args.repeats = args.repeats or (31 if cuda else 7)
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    keep_freed_memory()  # for both sides, as training does
    torch.manual_seed(0)
    model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY)).to(args.device)
    batch = make_batch(UTTERANCES[args.device])
    batch = batch.pin_memory() if cuda else batch
    if args.profile:
        step = sparse(model, batch, args.sparsities[0], args.block, args.precision)
        return profile(step, args.device)
    if args.only:
        return only(model, batch, args)
    if args.memory:
        return memory(args)
    rows = []
    for sparsity in args.sparsities:
        rows += measure(model, batch, sparsity, args)
    if not args.no_save:
        print(common.append_rows(f"train_step_{args.device}", rows))


def measure(
    model: FastSpeech2, batch: Batch, sparsity: float, args: argparse.Namespace
) -> list[common.Row]:
    """Rows of each step, timed in turn."""
    if args.device == "cpu":
        kinds = (ESPNET, *KINDS) if args.espnet else KINDS
        compared = {kind: Served(kind, sparsity, args) for kind in kinds}
    else:
        compared = {kind: make_step(kind, model, batch, sparsity, args) for kind in KINDS}
    for step in compared.values():
        for _ in range(3):  # optimizer state, the choice of backends, graphs
            loss = step()
        if not loss.isfinite():
            raise SystemExit(f"the loss is {float(loss)}: nothing is timed that is wrong")
    times = common.time_side_by_side(compared, args.repeats, lambda: synchronize(args.device))
    for step in compared.values():
        if isinstance(step, Served):
            step.end()
    cuts = {name: common.percentiles(t) for name, t in times.items()}
    ours, frames = cuts["sparse"][1], int(batch.mel_lengths.sum())
    said = [
        f"{name} {p50:,.1f} ms ({1e3 * frames / p50:,.0f} frames/s)"
        + (f" {p50 / ours:.2f}x" if name != "sparse" else "")
        for name, (_, p50, _) in cuts.items()
    ]
    print(f"sparsity {sparsity:.0%}: {', '.join(said)}", flush=True)
    return common.rows(
        cuts,
        cuts["dense"][1],
        torch.device(args.device),
        op="train_step",
        shape=f"espnet {len(batch)}x{TOKENS * FRAMES_A_TOKEN}",
        block=args.block,
        density=1 - sparsity,
        dtype={"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16"}[args.precision],
        pass_="step",
    )


if __name__ == "__main__":
    main()
