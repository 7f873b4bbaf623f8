# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel, compiled by every Triton from 3.6 to the newest, for every chip; no GPU.

python bench/gpu_compat.py [--versions 3.6.0 newest] [--archs 80 90 ...] [--jobs N]
                            [--defaults] [--reported]

Each Triton is installed without its dependencies into build/triton/VERSION and imported from there
beside the torch that is installed. Writes kernels/reports/compat.csv, a row a kernel: `ok`, or
which rule of `kernel_report.broken_rules` it breaks, or the compiler's error. Rows of other
versions and chips stay. With --reported the rows of the Triton that `kernel_report.py` ran with
are taken from its report. Ends with status 1 if a kernel is not ok.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import kernel_report
from kernel_report import ARCHS, Case, Failed, Row

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "kernels" / "reports" / "compat.csv"
INSTALLED_INTO = ROOT / "build" / "triton"
OLDEST = (3, 6)
_RELEASE = re.compile(r"\d+(\.\d+)+")


@dataclass(frozen=True)
class Compiled:
    """One row: what one Triton makes of one kernel for one chip.

    Args:
        kernel: pass and path, as `fwd tma`.
        tile: `tokens x width, warps, stages` of `kernels.configs.Config`.
        result: `ok`, or what is wrong.
    """

    triton: str
    arch: int
    kernel: str
    dtype: str
    block: int
    tile: str
    registers: int
    spills: int
    shared_bytes: int
    result: str


def compiled(found: Row | Failed, triton: str) -> Compiled:
    """The row of a case that was tried."""
    case = found.case if isinstance(found, Failed) else found
    tile = f"{case.tokens}x{case.width} {case.warps} warps {case.stages} stages"
    about = (triton, case.arch, f"{case.pass_} {case.path}", case.dtype, case.block, tile)
    if isinstance(found, Failed):
        return Compiled(*about, 0, 0, 0, found.error)
    result = "; ".join(kernel_report.broken_rules(found)) or "ok"
    return Compiled(*about, found.registers, found.spills, found.shared_bytes, result)


def cases(archs: Iterable[int], defaults: bool) -> Iterator[Case]:
    """All that ships, or of each kernel, chip, dtype and block size the first tile alone."""
    seen = set()
    for case in kernel_report.all_cases(tuple(archs)):
        key = (case.pass_, case.path, case.arch, case.dtype, case.block)
        if not defaults or key not in seen:
            seen.add(key)
            yield case


def read_report() -> list[Compiled]:
    """The committed rows."""
    if not REPORT.exists():
        return []
    numbers = {f.name for f in fields(Compiled) if f.type == "int"}
    with REPORT.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows: list[dict[str, Any]] = [
        {name: int(v) if name in numbers else v for name, v in line.items()} for line in lines
    ]
    return [Compiled(**row) for row in rows]


def write_report(rows: Iterable[Compiled]) -> None:
    """Replaces the table by these rows, sorted."""
    REPORT.parent.mkdir(exist_ok=True)
    order = sorted(rows, key=lambda r: (_numbers(r.triton), *astuple(r)[1:]))
    with REPORT.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Compiled)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in order)


def released() -> list[str]:
    """Versions of Triton from the oldest that counts to the newest, as the package index has them.

    Raises:
        RuntimeError: the index cannot be asked.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "triton"]
    answer = subprocess.run(command, capture_output=True, text=True)
    line = re.search(r"Available versions: (.*)", answer.stdout)
    if answer.returncode or not line:
        raise RuntimeError(f"pip index versions triton: {answer.stderr.strip()[-300:]}")
    versions = [v for v in line[1].split(", ") if _RELEASE.fullmatch(v)]
    return sorted((v for v in versions if _numbers(v)[:2] >= OLDEST), key=_numbers)


def folder_of(version: str) -> Path:
    """Where a Triton lies; installs it there if it does not yet.

    Raises:
        RuntimeError: pip cannot install it.
    """
    folder = INSTALLED_INTO / version
    if not (folder / "triton").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--target", str(folder), f"triton=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"triton {version}: pip said {done.stderr.strip()[-300:]}")
    return folder


def compile_with(version: str, arch: int, defaults: bool, jobs: int) -> list[Compiled]:
    """Everything for one chip, by one Triton, in a process of its own, which imports no other.

    Raises:
        RuntimeError: the process did not come to its end.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--jobs", str(jobs)]
    command += ["--archs", str(arch), *["--defaults"] * defaults]
    path = [str(folder_of(version)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            rows.append(Compiled(**json.loads(line)))
            if rows[-1].triton != version:
                raise RuntimeError(f"expected triton {version}, imported {rows[-1].triton}")
            if rows[-1].result != "ok":
                print(*astuple(rows[-1]), flush=True)
    if worker.returncode:
        raise RuntimeError(f"triton {version}: the compiling process ended {worker.returncode}")
    return rows


def reported(version: str, arch: int, defaults: bool) -> list[Compiled] | None:
    """What kernels/reports/resources.csv says, if it was made with this Triton."""
    report = kernel_report.read_report()
    rows = [report.get(case) for case in cases([arch], defaults)]
    found = [row for row in rows if row is not None and row.triton == version]
    return [compiled(row, version) for row in found] if len(found) == len(rows) else None


def _work(archs: tuple[int, ...], defaults: bool, jobs: int) -> None:
    import triton

    for found in kernel_report.compile_all(cases(archs, defaults), jobs):
        print(json.dumps(asdict(compiled(found, triton.__version__))), flush=True)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--versions", nargs="+", help="of Triton; `newest`; default: all from 3.6")
    parser.add_argument("--archs", type=int, nargs="+", default=ARCHS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--defaults", action="store_true", help="the first tile of each kernel")
    parser.add_argument("--reported", action="store_true", help="what kernel_report.py has found")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        archs = kernel_report.check_archs(args.archs)
        if args.worker:
            return _work(archs, args.defaults, args.jobs)
        wanted = args.versions or released()
        versions = [released()[-1] if v == "newest" else v for v in wanted]
        faults = 0
        for version, arch in itertools.product(versions, archs):
            rows = reported(version, arch, args.defaults) if args.reported else None
            rows = rows or compile_with(version, arch, args.defaults, args.jobs)
            # Chip by chip, so that a run that is stopped keeps what it has found.
            kept = [r for r in read_report() if (r.triton, r.arch) != (version, arch)]
            write_report([*kept, *rows])
            wrong = sum(row.result != "ok" for row in rows)
            faults += wrong
            print(
                f"triton {version} sm_{arch}: {len(rows)} kernels, {wrong} with faults", flush=True
            )
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
