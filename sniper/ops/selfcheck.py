# SPDX-License-Identifier: Apache-2.0
"""A GPU's kernels are trusted after a check, which runs once a machine, in processes of its own.

    python -m sniper.ops.selfcheck_child --device 0 --dtype bf16 --block-size 64

A kernel that crashes, accesses memory that is not its own or never ends costs the child, not the
run: the parent waits for a limited time, takes note of the family that was at work, and goes on
behind it. Several children share the families. Verdicts lie in the cache folder by GPU, driver,
torch, Triton and kernel revision.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sniper.ops import timings
from sniper.ops.cache_files import cache_folder, locked, replace_file

FORMAT = 1
# Seconds without news from the child: a family compiles up to a dozen kernels.
PATIENCE = 120.0
# Children at once: compiling takes nearly all of a check. Each holds some memory of the GPU.
MOST_CHILDREN = 4
REPORT = "please report it with the output of `python -m sniper.doctor --json`"
CASES = "sniper.ops.selfcheck_cases"
ELEMENTWISE, NORM, RECORDED = "elementwise", "norm", "recorded step"
BATCH_NORM = "batch norm"
ATTENTION = "attention"
LOSS, REGULATOR = "loss", "length regulator"
OPTIMIZER = "optimizer"
# The block size of a check of kernels that multiply nothing.
NO_BLOCKS = 0
# This name is no family: under it lies why the child could not begin with any.
START = "start"
# Seconds for which a family is left out that may have failed by what else the machine did.
DOUBT = 24 * 3600.0
AGAIN = "it is checked again after a day, or by `sniper-tts doctor --recheck`"
# Deaths that somebody else brings about: a system that has no memory left, a scheduler, a user.
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU}


@dataclass(frozen=True)
class Verdict:
    """What the check of one family found.

    Attributes:
        ok: whether it may be used.
        error: largest error relative to the largest value; None where it did not get that far.
        seconds: that the check took, compiling included.
        message: what went wrong; empty if nothing.
        until: when it is checked again, in seconds since 1970; None: with other versions only.
    """

    ok: bool
    error: float | None = None
    seconds: float = 0.0
    message: str = ""
    until: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it need not be checked again yet."""
        return self.until is None or time.time() < self.until

    @classmethod
    def from_json(cls, data: Any) -> Verdict | None:
        """None where `data` is not what `asdict` gives."""
        try:
            verdict = cls(**data)
        except TypeError:
            return None
        numbers = (verdict.error or 0.0, verdict.seconds, verdict.until or 0.0)
        fine = isinstance(verdict.ok, bool) and isinstance(verdict.message, str)
        return verdict if fine and all(isinstance(n, int | float) for n in numbers) else None


_verdicts: dict[str, dict[str, Verdict]] = {}


def trusted(x: Tensor, block_size: int, family: str) -> bool:
    """Whether a family's kernels may run on tensors such as `x`, checked now if nobody knows.

    Args:
        x: on a GPU.
        block_size: edge of the layout's blocks.
        family: `ELEMENTWISE`, `NORM`, `BATCH_NORM`, `ATTENTION`, `LOSS`, `REGULATOR`, `RECORDED`,
            what `family` gives, or `OPTIMIZER`, whose block size is `NO_BLOCKS`.

    Warns once for each family that is left out. `SNIPER_SELF_CHECK=skip` trusts everything.
    """
    if os.environ.get("SNIPER_SELF_CHECK") == "skip":
        return True
    dtype = "fp32" if block_size == NO_BLOCKS else dtype_name(x)
    verdict = check(x.device, dtype, block_size).get(family)
    return verdict is not None and verdict.ok


def family(path: str, op: str) -> str:
    """The name under which kernels of one path (`tma`, `pointer`) and op (`product`, `wgrad`) are
    trusted or left out.
    """
    return f"{path} {op}"


def dtype_name(x: Tensor) -> str:
    """`bf16`, `fp16`, `tf32` or `fp32`, as kernels would multiply this tensor."""
    if x.dtype == torch.float32:
        return precision()
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}[x.dtype]


def precision() -> str:
    """`tf32` where torch allows tensor cores to round float32, else `fp32`."""
    matmul = torch.backends.cuda.matmul
    allowed = getattr(matmul, "fp32_precision", None) or (matmul.allow_tf32 and "tf32")
    return "tf32" if allowed == "tf32" else "fp32"


def check(
    device: torch.device, dtype: str, block_size: int, anew: bool = False
) -> dict[str, Verdict]:
    """The verdicts of all families for a dtype and block size on a GPU, by family.

    Args:
        anew: whatever is known already.
    """
    index = device.index if device.index is not None else torch.cuda.current_device()
    key = f"{_machine(index)} {dtype} blocks of {block_size}"
    if anew or key not in _verdicts:
        # A second process waits for the first one's verdicts: two checks at once could each take
        # the other's load for a kernel that hangs.
        with locked("self-check.lock", 10 * PATIENCE):
            before = {} if anew else _read().get(key, {})
            known = {name: v for name, v in before.items() if v.holds}
            if not before or len(known) < len(before):
                known = run(index, dtype, block_size, known=known)
                if START not in known:  # a GPU that is full or busy now may not be so next time
                    _write(key, known)
        _verdicts[key] = known
        _warn(known, f"{what_of(dtype, block_size)} on {torch.cuda.get_device_name(index)}")
    return _verdicts[key]


def what_of(dtype: str, block_size: int) -> str:
    """In words, what a check was of."""
    return dtype if block_size == NO_BLOCKS else f"{dtype} in blocks of {block_size}"


def doubtful(message: str) -> Verdict:
    """A failure that another process, or a full memory, may have brought about."""
    return Verdict(False, message=f"{message}; {AGAIN}", until=time.time() + DOUBT)


def lacking(message: str) -> Verdict:
    """A failure by something that the machine lacks: every process looks again, since the user may
    have installed it.
    """
    # A minute, for processes that start together and wait for each other's check.
    until = time.time() + 60
    return Verdict(False, message=f"{message}; the next start checks again", until=until)


def _warn(verdicts: dict[str, Verdict], where: str) -> None:
    """Warns once for each reason, not for each family: without a compiler all fail alike."""
    by_reason: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        if not verdict.ok:
            by_reason.setdefault(verdict.message, []).append(name)
    for reason, names in by_reason.items():
        warnings.warn(
            f"sniper leaves out its {', '.join(names)} kernels for {where}: {reason}; other "
            f"kernels or torch's own run; {REPORT}",
            stacklevel=4,
        )


def run(
    device: int | str,
    dtype: str,
    block_size: int,
    cases: str = CASES,
    patience: float = PATIENCE,
    hang: float | None = None,
    known: dict[str, Verdict] | None = None,
    children: int | None = None,
) -> dict[str, Verdict]:
    """Checks every family in child processes, several at once, whatever is cached.

    Args:
        device: index of the GPU, or `cpu` for Triton's interpreter.
        cases: module with `families(dtype, block_size, device)`.
        patience: seconds that a family, or the start, may take.
        hang: seconds that a family may take once it has begun; None: as many.
        known: verdicts that are taken over.
        children: at once; None: one for two processors, up to `MOST_CHILDREN`.
    """
    verdicts = dict(known or {})
    parts = children or max(1, min(MOST_CHILDREN, (os.cpu_count() or 1) // 2))
    options = ["--device", str(device), "--dtype", dtype, "--block-size", str(block_size)]
    options += ["--cases", cases]
    names = itertools.count()
    with (
        tempfile.TemporaryDirectory(prefix="sniper-check-") as folder,
        contextlib.ExitStack() as stack,
    ):

        def begin(part: int) -> _Child:
            of_part = [*options, "--part", f"{part}/{parts}", "--done", json.dumps(list(verdicts))]
            news = Path(folder) / f"{next(names)}.jsonl"
            return stack.enter_context(_Child(of_part, news, (patience, hang or patience)))

        at_work = {part: begin(part) for part in range(parts)}
        while at_work:
            time.sleep(0.02)
            for part, child in list(at_work.items()):
                if child.is_at_work():
                    continue
                del at_work[part]
                found, begun = _read_news(child.news)
                verdicts.update(found)
                failure = child.failure()
                if failure is None:
                    continue
                if begun is not None:
                    verdicts[begun] = failure
                elif not found:  # it did not come to begin a family, and nor would the next
                    verdicts[START] = failure
                    continue
                # Else the child died between two families, as after an illegal access; the fault of
                # the first is told already.
                at_work[part] = begin(part)
    return verdicts


class _Child:
    """A process that checks some families; as a context, killed at its end.

    Args:
        options: of its command line.
        news: the file that it tells what it finds in.
        patience: seconds without news that it may take to begin, and then.
    """

    def __init__(self, options: list[str], news: Path, patience: tuple[float, float]):
        self.news, self._patience = news, patience
        command = [sys.executable, "-m", "sniper.ops.selfcheck_child", *options]
        command += ["--news", str(news)]
        # Or the child would start a child to check what it is checking.
        environment = {**os.environ, "SNIPER_SELF_CHECK": "skip"}
        self._log = open(news.with_suffix(".log"), "w+b")  # noqa: SIM115 - closed with the context
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env=environment
        )
        self._heard, self._size = time.monotonic(), 0
        self._passed: float | None = None

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._log.close()

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            # A driver that waits for a kernel may not let go of its process at once.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)

    def is_at_work(self) -> bool:
        """Whether it has neither ended nor been silent for too long, for which it is killed."""
        if self._process.poll() is not None:
            return False
        size = self.news.stat().st_size if self.news.exists() else 0
        if size != self._size:
            self._heard, self._size = time.monotonic(), size
        # Until the first news torch and the driver have to load, which is no kernel's fault.
        limit = self._patience[size > 0]
        if time.monotonic() - self._heard <= limit:
            return True
        self._passed = limit
        self._kill()
        return False

    def failure(self) -> Verdict | None:
        """None where it came to its end, else why it did not."""
        if self._passed is not None:
            return doubtful(f"it did not end within {self._passed:g} seconds")
        code = self._process.returncode
        if code == 0:
            return None
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        last = said[-1].strip()[:300] if said else "it said nothing"
        if -code in FROM_OUTSIDE:
            return doubtful(f"its process was killed by signal {-code}")
        if code < 0:
            return Verdict(False, message=f"its process was killed by signal {-code} ({last})")
        return doubtful(f"its process ended with status {code}: {last}")


def _read_news(news: Path) -> tuple[dict[str, Verdict], str | None]:
    """What the child found, and the family that it had begun and not ended."""
    found: dict[str, Verdict] = {}
    at_work = None
    for line in news.read_text(encoding="utf-8").splitlines() if news.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off when the child died
        if "begins" in entry:
            at_work = entry["begins"]
            continue
        verdict = Verdict.from_json(entry["verdict"])
        if verdict is not None:
            found[entry["family"]], at_work = verdict, None
    return found, at_work


@cache
def _machine(index: int) -> str:
    """Everything that a verdict depends on."""
    major, minor = torch.cuda.get_device_capability(index)
    return (
        f"{torch.cuda.get_device_name(index)} sm_{major}{minor} driver {driver_version()} "
        f"torch {torch.__version__} CUDA {torch.version.cuda} "
        f"Triton {timings.triton_version()} kernels {timings.kernel_revision()}"
    )


@cache
def driver_version() -> str:
    """The NVIDIA driver's version, or `unknown`."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next(w for w in words if w[0].isdigit() and "." in w)
    except (OSError, StopIteration):
        return "unknown"


def _path() -> Path:
    return cache_folder() / f"self-check-{FORMAT}.json"


def _read() -> dict[str, dict[str, Verdict]]:
    """What is on disk; entries that are not ours count as not there."""
    try:
        data = json.loads(_path().read_text(encoding="utf-8"))
        entries = data["verdicts"] if data["format"] == FORMAT else {}
        items = [(key, dict(families)) for key, families in entries.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError):
        return {}
    result = {}
    for key, families in items:
        verdicts = {name: Verdict.from_json(v) for name, v in families.items()}
        if verdicts and all(verdicts.values()):
            result[key] = verdicts
    return result


def _write(key: str, verdicts: dict[str, Verdict]) -> None:
    entries = {**_read(), key: verdicts}
    plain = {k: {name: asdict(v) for name, v in vs.items()} for k, vs in entries.items()}
    text = json.dumps({"format": FORMAT, "verdicts": plain}, indent=1)
    # Where it cannot be written, the next process checks again.
    with contextlib.suppress(RuntimeError):
        replace_file(_path(), text)
