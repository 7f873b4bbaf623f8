# SPDX-License-Identifier: Apache-2.0
"""Which of several candidates is fastest: measured, and remembered in memory and on disk.

The file lies in $SNIPER_CACHE_DIR (default ~/.cache/sniper). Since choices are remembered, a run
that is stopped and resumed, or run twice, computes with the same kernels and gets the same bits.

A choice rests on several samples of each candidate, taken in turns, so that a disturbance meets all
of them. Where the samples do not separate two candidates it is marked as unsure. A run keeps it all
the same, or it would not get the same bits twice; inside `looking_again`, as `python -m
sniper.doctor` is, such choices are made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sniper import _C, kernels
from sniper.ops.cache_files import cache_folder, locked, replace_file

FORMAT = 3
LOCK = "backend-times.lock"
PATIENCE = 10.0  # seconds; the lock is held while a small file is written
# A kernel within this share of the best is preferred in the order of the candidates: a near tie
# must not be decided by noise, which would change the bits of a run.
TIE = 0.03
# Samples of each candidate: as many at least, and as many at most where they do not decide.
SAMPLES, MOST_SAMPLES = 3, 9
# A candidate this many times slower than another, in its best sample, is not timed any more.
CLEAR = 1.5

# On a GPU: launches queue up behind a kernel that waits, 3 ms at least, so that none is measured
# waiting for the host, as none does in a recorded step.
_WAIT_CYCLES, _CYCLES_A_SECOND = 6_000_000, 2_000_000_000
_LAUNCHES_BEHIND_ONE_WAIT = 4
_MOST_ON_HOST = 0.02  # seconds a launch: a kernel that is compiled first takes the host far longer

Noise = Callable[[], list[float]]


def no_noise() -> list[float]:
    """Results differ by a share of their largest entry, and no more."""
    return []


_choices: dict[str, Choice] | None = None
# Held while choices change: threads may call one model.
_one_thread = threading.RLock()
_look_again = False
_looked_again: set[str] = set()
_generation = 0
_device_time = False


@dataclass(frozen=True)
class Choice:
    """What was measured for one key.

    Attributes:
        seconds: median by candidate.
        sure: whether the samples separate the fastest from the others, or show a near tie.
        samples: how many samples the best candidate has.
        failed: candidates that raised or gave wrong values.
    """

    seconds: dict[str, float]
    sure: bool
    samples: int
    failed: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Any) -> Choice | None:
        """None where `data` is not what `asdict` gives."""
        try:
            seconds = {str(k): float(v) for k, v in data["seconds"].items()}
            sure, samples = data["sure"], data["samples"]
            failed = tuple(str(name) for name in data["failed"])
        except (TypeError, KeyError, AttributeError, ValueError):
            return None
        fine = seconds and all(0 < s < math.inf for s in seconds.values())
        if not fine or not isinstance(sure, bool) or type(samples) is not int or samples < 1:
            return None
        return cls(seconds, sure, samples, failed)

    def covers(self, candidates: Iterable[str]) -> bool:
        """Whether all of them were tried, and one can run."""
        names = set(candidates)
        return names <= {*self.seconds, *self.failed} and bool(names & set(self.seconds))


def fastest(
    key: str,
    candidates: dict[str, Callable[[], Any]],
    quiet: bool = False,
    noise: Noise = no_noise,
    compared: dict[str, Callable[[], Any]] | None = None,
) -> str:
    """The name of the candidate to run for `key`, measured now if it is not known.

    Args:
        key: everything that the times depend on.
        candidates: functions by name, the preferred one first; all compute the same. The last is
            trusted: another one that raises, or differs from it by more than rounding, is left out
            with a warning.
        quiet: without the warning, where it is usual that not all of them can run.
        noise: for each result, by how much right candidates may differ beyond a share of its
            largest entry (`sniper.ops.rounding.noise`); called where times are taken.
        compared: what gives the results that are compared, where it is not what is timed.

    Raises:
        Exception: whatever the last candidate raises.
    """
    before = _load().get(key)
    if before is None or not before.covers(candidates):
        # Timing waits for the device, which would break the recording with an error about something
        # else.
        if _capturing():
            raise RuntimeError(f"nothing was measured before this step was recorded: {key}")
        if before is not None:
            outdate()
        # Not under the lock: what is timed may choose, too, and on another thread.
        measured = _measure(candidates, quiet, noise, compared or candidates)
        with _one_thread:
            found = _load().get(key)
            if found is None or not found.covers(candidates):  # or another thread was first
                _load()[key] = measured
            _looked_again.add(key)
            _store(measured=key, unless_covers=candidates)
            return _pick(_load()[key], candidates)
    elif _look_again and not before.sure and key not in _looked_again and not _capturing():
        again = _measure(candidates, quiet, noise, compared or candidates)
        with _one_thread:
            _looked_again.add(key)
            # An unsure second look overturns nothing: the bits of later runs must not change
            # without a reason.
            if again.sure:
                if _pick(again, candidates) != _pick(before, candidates):
                    outdate()
                _load()[key] = again
                _store(measured=key)
                before = _load()[key]
    return _pick(before, candidates)


@contextlib.contextmanager
def looking_again() -> Iterator[None]:
    """Inside, unsure choices are measured once more, at their first use."""
    global _look_again
    before, _look_again = _look_again, True
    _looked_again.clear()
    outdate()  # what is kept of choices was not looked at again
    try:
        yield
    finally:
        _look_again = before


def known(key: str) -> dict[str, float] | None:
    """Median seconds by candidate, if they were measured."""
    choice = _load().get(key)
    return None if choice is None else dict(choice.seconds)


def failed(key: str) -> tuple[str, ...]:
    """The candidates that raised or gave wrong values."""
    choice = _load().get(key)
    return () if choice is None else choice.failed


def generation() -> int:
    """Changes when choices that were in use may have become others; new ones do not count."""
    return _generation


def outdate() -> None:
    """Says that a choice in use has changed: recorded graphs launch what it was before."""
    global _generation
    _generation += 1


def drop(key: str) -> None:
    """Forgets one choice, here and on disk, so that it is made anew."""
    with _one_thread:
        if _load().pop(key, None) is not None:
            outdate()
            _store(dropped=key)


def forget() -> None:
    """Drops all choices, in memory and on disk."""
    global _choices
    outdate()
    _choices = {}
    _path().unlink(missing_ok=True)


@contextlib.contextmanager
def device_time() -> Iterator[None]:
    """Inside, what a GPU's candidates take is time on the device alone, as in a recorded step;
    outside it is the time that the host sees, launches included. The two are kept apart.
    """
    global _device_time
    before, _device_time = _device_time, True
    try:
        yield
    finally:
        _device_time = before


def clock() -> str:
    """Which of a GPU's two times counts now."""
    return "device time" if _device_time else "host time"


def machine(device: torch.device) -> str:
    """Names the device, the versions and the clock that times depend on."""
    if device.type != "cuda":
        return f"{device_name(device)} torch {torch.__version__} kernels {kernel_revision()}"
    return (
        f"{device_name(device)} torch {torch.__version__} CUDA {torch.version.cuda} "
        f"Triton {triton_version()} kernels {kernel_revision()} {clock()}"
    )


@cache
def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU as the system has it, with the vectors that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
        name = next(names).strip()
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    # A virtual machine's CPU may be called the same whatever it is.
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


@cache
def triton_version() -> str:
    """The installed Triton's version, or `none`."""
    try:
        from importlib.metadata import version

        return version("triton")
    except Exception:
        return "none"


@cache
def kernel_revision() -> str:
    """Eight hex digits that change with the sources of the Triton kernels or the extension."""
    # Contents, not a version number: nobody remembers to raise one while tuning a kernel.
    digest = hashlib.blake2b(digest_size=4)
    sources = sorted(Path(next(iter(kernels.__path__))).glob("*.py"))
    for path in [*sources, Path(_C.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _pick(choice: Choice, candidates: dict[str, Any]) -> str:
    times = {name: choice.seconds[name] for name in candidates if name in choice.seconds}
    # The first within a near tie, in the caller's order, not the fastest by a hair.
    limit = min(times.values()) * (1 + TIE)
    return next(name for name, t in times.items() if t <= limit)


def _measure(
    candidates: dict[str, Callable[[], Any]],
    quiet: bool,
    noise: Noise,
    compared: dict[str, Callable[[], Any]],
) -> Choice:
    """Samples in turns until they decide; what is far behind is not run again."""
    # Results are compared first: a candidate that computes something else is never timed.
    every, good = list(candidates), _that_agree(compared, quiet, noise)
    candidates = {name: candidates[name] for name in good}
    failed = tuple(name for name in every if name not in candidates)
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    # Three before anything is left behind or its median counts: on an H200 the first of a process
    # was twenty times too long.
    for name in [*candidates] * SAMPLES:
        samples[name].append(_sample(candidates[name]))
    for _ in range(SAMPLES, MOST_SAMPLES):
        limit = CLEAR * min(min(s) for s in samples.values())
        close = [name for name, s in samples.items() if min(s) <= limit]
        if len(close) == 1 or _decided(samples, close):
            break
        for name in close:
            samples[name].append(_sample(candidates[name]))
    limit = CLEAR * min(min(s) for s in samples.values())
    close = [name for name, s in samples.items() if min(s) <= limit]
    medians = {name: statistics.median(s) for name, s in samples.items()}
    most = max(map(len, samples.values()))
    return Choice(medians, _decided(samples, close), most, failed)


def _decided(samples: dict[str, list[float]], close: list[str]) -> bool:
    """Whether the middle of each close candidate's samples lies clear of the best's, or all of
    them lie so near each other that it does not matter.
    """
    middles = {name: _middle(samples[name]) for name in close}
    best = min(close, key=lambda name: statistics.median(samples[name]))
    low, high = middles[best]
    calm = high <= low * (1 + 2 * TIE)
    return all(
        other == best or middles[other][0] > high or (calm and middles[other][1] <= low * (1 + TIE))
        for other in close
    )


def _middle(samples: list[float]) -> tuple[float, float]:
    """The range of the samples without the slowest and fastest fifths."""
    ordered = sorted(samples)
    cut = len(ordered) // 4
    return ordered[cut], ordered[len(ordered) - 1 - cut]


def _that_agree(
    candidates: dict[str, Callable[[], Any]], quiet: bool, noise: Noise
) -> dict[str, Callable[[], Any]]:
    """The candidates that run and give the trusted results; each runs once for it, which also warms
    it up.
    """
    *others, trusted = candidates
    wanted = _tensors(candidates[trusted]())
    good = {}
    for name in others:
        try:
            wrong = _difference(_tensors(candidates[name]()), wanted, noise())
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            wrong = f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not wrong:
            good[name] = candidates[name]
        elif not quiet:
            warnings.warn(f"{name} is not used, {trusted} runs instead: {wrong}", stacklevel=2)
    return {**good, trusted: candidates[trusted]}


def _difference(got: list[Tensor], wanted: list[Tensor], noise: list[float]) -> str:
    """What is wrong with a result beyond its dtype's rounding; empty if nothing."""
    # As shares of the largest entry, since results are sums of thousands of products, in float32
    # perhaps as tf32.
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 4e-3}
    noise = [*noise, *[1e-30] * len(wanted)]
    for g, w, slack in zip(got, wanted, noise, strict=False):
        if g.shape != w.shape or g.dtype != w.dtype:
            return f"expected {w.dtype} {list(w.shape)}, got {g.dtype} {list(g.shape)}"
        if not w.numel():
            continue
        largest, off = float(w.abs().max()), float((g - w).abs().max())
        # Written with not, so that a NaN difference counts as wrong. A trusted result that is
        # infinite itself is the user's overflow and no fault of a candidate.
        if math.isfinite(largest) and not off <= tolerance.get(w.dtype, 1e-8) * largest + slack:
            return f"an entry of its result is off by {off:.1e}, the largest is {largest:.1e}"
    return ""


def _tensors(result: Any) -> list[Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return [t for t in parts if t is not None]


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _sample(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    if _device_time and torch.cuda.is_available():
        return _seconds_on_device(run)
    started = time.perf_counter()
    result = run()
    device = _tensors(result)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _seconds_on_device(run: Callable[[], Any]) -> float:
    flush = _flush_buffer(torch.cuda.current_device())
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    # Forward and backward of several kernels took the host a millisecond, and were measured so.
    on_host = min(time.perf_counter() - started, _MOST_ON_HOST)
    wait = int(2 * _LAUNCHES_BEHIND_ONE_WAIT * on_host * _CYCLES_A_SECOND)
    torch.cuda._sleep(max(_WAIT_CYCLES, wait))
    marks = []
    for _ in range(_LAUNCHES_BEHIND_ONE_WAIT):
        # Inputs come from memory, as they do in a step whose tensors do not fit into the L2.
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks) / 1e3


@cache
def _flush_buffer(index: int) -> Tensor:
    """Twice the size of the L2."""
    size = getattr(torch.cuda.get_device_properties(index), "L2_cache_size", 0) or 64 << 20
    return torch.empty(2 * size, dtype=torch.uint8, device=f"cuda:{index}")


def _path() -> Path:
    return cache_folder() / f"backend-times-{FORMAT}.json"


def _load() -> dict[str, Choice]:
    global _choices
    if _choices is None:
        with _one_thread:
            if _choices is None:
                _choices = _read()
    return _choices


def _read() -> dict[str, Choice]:
    """What is on disk, entry by entry; what is not ours is set aside with one line."""
    try:
        text = _path().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        if isinstance(error, UnicodeDecodeError):
            _set_aside("it is no text")
        return {}  # not there, or no home directory
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    data = data if isinstance(data, dict) else {}
    entries = data.get("choices")
    if not isinstance(entries, dict) or data.get("format") != FORMAT:
        _set_aside(f"expected format {FORMAT} with choices, got something else")
        return {}
    return {k: c for k, v in entries.items() if (c := Choice.from_json(v)) is not None}


def _set_aside(why: str) -> None:
    path = _path()
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))
    warnings.warn(
        f"{path} cannot be used ({why}); it is kept as {path.with_suffix('.damaged').name}, "
        "and times are measured anew",
        stacklevel=2,
    )


def _store(
    dropped: str | None = None, measured: str | None = None, unless_covers: Iterable[str] = ()
) -> None:
    """Adds what another process found meanwhile, and replaces the file in one go.

    Args:
        dropped: is on disk no more.
        measured: is on disk as it is here, unless what is there already covers the candidates
            `unless_covers`. Of everything else, too, what is there wins: a second process must not
            overturn what the first one runs with.
    """
    global _choices
    mine = _load()
    with locked(LOCK, PATIENCE):
        there = _read()
        if measured is not None and measured in there:
            if not (unless_covers and there[measured].covers(unless_covers)):
                del there[measured]
        _choices = {**mine, **there}
        if dropped is not None:
            _choices.pop(dropped, None)
        data = {"format": FORMAT, "choices": {k: asdict(c) for k, c in _choices.items()}}
        # Where it cannot be written, choices live as long as the process.
        with contextlib.suppress(RuntimeError):
            replace_file(_path(), json.dumps(data, indent=0))
    if any(_choices[key] != mine[key] for key in mine if key not in (measured, dropped)):
        outdate()
