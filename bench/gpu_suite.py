# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU, in one command and under eight minutes.

python bench/gpu_suite.py --out DIR [--skip-build] [--minutes 8]

Builds the package, runs the tests marked `gpu`, the benchmarks and a short SNIPER training run on
generated features. Every step has a time limit, none stops the next; tables come last, and DIR gets
suite.json, suite.log and the benchmarks' CSV files. Exits 1 if any step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
FFN = ["384-1536-3", "1536-384-3", "256-1024-9"]
STEPS, WARM_UP = 60, 20


def steps(python: str) -> list[tuple[str, list[str], int]]:
    """Name, command and limit in seconds; the order is that of importance."""
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    pytest = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    layers = [python, str(BENCH / "bench_layers.py"), "--device", "cuda", "--dtype", "bfloat16"]
    layers += ["--repeats", "21"]
    ffn = [*layers, "--layers", *FFN, "--densities", "0.2", "0.5"]
    return [
        ("build", pip, 150),
        ("tests", [*pytest, "--maxfail", "20", *_gpu_tests()], 130),
        ("layers b64", [*ffn, "--block", "64"], 60),
        ("layers b128", [*ffn, "--block", "128"], 60),
        ("training", [python, str(Path(__file__)), "--train"], 60),
        ("train step", [python, str(BENCH / "bench_train_step.py"), "--device", "cuda"], 70),
        ("mask update", [python, str(BENCH / "bench_mask_update.py"), "--device", "cuda"], 45),
        ("attention", [*layers, "--layers", "384-384-1", "--densities", "0.2", "1.0"], 30),
    ]


def _gpu_tests() -> list[str]:
    """Test files that mark something `gpu`: others may need packages that are not there."""
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path not in files and "mark.gpu" in path.read_text():
            files.append(path)
    return [str(f) for f in files]


def missing(command: list[str]) -> str | None:
    """Why a benchmark cannot run: it is not there, or knows no GPU."""
    script = next((Path(c) for c in command if c.endswith(".py")), None)
    if script is None or script.parent != BENCH:
        return None
    if not script.exists():
        return f"{script.name} is not there"
    return None if "cuda" in script.read_text() else f"{script.name} knows no --device cuda"


def run_step(name: str, command: list[str], limit: float, log: Path) -> dict:
    """Runs one command within `limit` seconds, its output to the log; never raises."""
    reason = missing(command)
    if reason is None and limit < 10:
        reason = "no time left"
    if reason:
        return {"step": name, "status": f"skipped: {reason}", "seconds": 0.0, "tail": []}
    started = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n=== {name}: {' '.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # A group of its own, so that what a step started ends with it.
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=env, start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"failed, exit {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"stopped after {limit:.0f} s"
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    seconds = round(time.monotonic() - started, 1)
    return {"step": name, "status": status, "seconds": seconds, "tail": lines[-40:]}


def facts() -> dict[str, str]:
    """Device, versions and commit, asked of a process of its own: torch may be broken."""
    program = (
        "import sys, json, torch, triton; sys.path.insert(0, sys.argv[1]); import common\n"
        "d = torch.device('cuda'); p = torch.cuda.get_device_properties(d)\n"
        "print(json.dumps({'device': p.name, 'sm': f'{p.major}{p.minor}',\n"
        "  'versions': common.versions() + ', triton ' + triton.__version__,\n"
        "  'cuda': torch.version.cuda, 'commit': common.commit()}))"
    )
    command = [sys.executable, "-c", program, str(BENCH)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"device": "none", "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=7.7)
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--train", action="store_true", help="only the training run, in here")
    args = parser.parse_args()
    if args.train:
        return train()
    if args.out is None:
        parser.error("--out DIR is needed")
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "suite.log"
    log.write_bytes(b"")
    deadline = time.monotonic() + 60 * args.minutes
    before = {p: p.stat().st_mtime for p in (BENCH / "results").glob("*.csv")}
    report = {"facts": facts(), "steps": []}
    for name, command, limit in steps(sys.executable):
        if name == "build" and args.skip_build:
            continue
        left = min(limit, deadline - time.monotonic())
        report["steps"].append(run_step(name, command, left, log))
        # Written after each step: a suite that is cut off has what it did.
        (args.out / "suite.json").write_text(json.dumps(report, indent=1))
        for path in (BENCH / "results").glob("*.csv"):
            if before.get(path) != path.stat().st_mtime:
                shutil.copy(path, args.out)
    failed = show(report)
    raise SystemExit(bool(failed))


def show(report: dict) -> int:
    """Prints the last lines of every step, then one line each; returns how many failed."""
    for step in report["steps"]:
        print(f"\n--- {step['step']}: {step['status']}")
        keep = 25 if step["status"] != "ok" or "layers" in step["step"] else 8
        print("\n".join(line[:200] for line in step["tail"][-keep:]))
    print("\n" + "  ".join(f"{k} {v}" for k, v in report["facts"].items()))
    for step in report["steps"]:
        print(f"{step['step']:12} {step['seconds']:6.1f} s  {step['status']}")
    return sum(step["status"].startswith(("failed", "stopped")) for step in report["steps"])


def train(device: str = "cuda") -> None:
    """A schedule of 80 % to 0 over generated features: losses must fall, at every sparsity."""
    import torch
    from bench_train_step import UTTERANCES, VOCABULARY, Step, make_batch, synchronize

    from sniper import LearningRateScale, Sniper
    from sniper.tts.model.fastspeech2 import FastSpeech2, FastSpeech2Config

    torch.manual_seed(0)
    batch = make_batch(UTTERANCES[device])
    batch = batch.pin_memory() if device == "cuda" else batch
    model = FastSpeech2(FastSpeech2Config(vocab_size=VOCABULARY)).to(device).train()
    schedule = {0: 0.8, 1: 0.4, 2: 0.0}
    sniper = Sniper(model, schedule, block_size=64, lr_scale=LearningRateScale(max=10.0))
    sniper.score([batch.to(device)], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
    step = Step(model, batch, "bf16", sniper)
    for epoch, sparsity in schedule.items():
        sniper.step(epoch, step.optimizer)
        losses = []
        for number in range(STEPS):
            if number == WARM_UP:  # compiled, backends chosen, graphs recorded
                synchronize(device)
                started = time.perf_counter()
            losses.append(step().clone())
        synchronize(device)
        rate = (STEPS - WARM_UP) * int(batch.mel_lengths.sum()) / (time.perf_counter() - started)
        first, last = float(losses[0]), float(losses[-1])
        print(
            f"sparsity {sparsity:.0%}: loss {first:.4f} -> {last:.4f}, {rate:,.0f} frames/s "
            f"({batch.n_frames} frames a step)"
        )
        if not last < first:
            raise SystemExit(f"the loss did not fall at sparsity {sparsity}")


if __name__ == "__main__":
    main()
