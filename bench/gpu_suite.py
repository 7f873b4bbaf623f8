# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU, in one command and some ten minutes: checks, then measurements.

python bench/gpu_suite.py [--out DIR] [--only NAME ...] [--minutes 10] [--skip-build] [--corpus DIR]
python bench/gpu_suite.py --dry      # tiny shapes on the CPU, through the same code

Every section is a process of its own with a time limit; none that fails stops another. What is
built and compiled comes first, then checks side by side, then measurements one by one, and nothing
that a check has timed counts there. DIR (default $OUT, else bench/results/gpu) gets one JSON file a
section, with device, versions and commit, as soon as the section has ended, its rows as they come,
and suite.log: a suite that is cut off has lost nothing but what ran. Speech libraries are not
needed, features are generated; with --corpus, a folder of prepared speech, epochs of the trainer
are timed too. Exits with 1 if any section failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
# Seconds in which a section cannot do anything useful.
TOO_SHORT = 8
# The sections before all others, one by one. The doctor checks the kernels, or a measured section
# would do so within its own time.
FIRST = ("build", "compile", "doctor")


class Section(NamedTuple):
    """One process.

    Args:
        limit: in seconds.
        needs: a program without which it is left out.
        measures: whether nothing else may run meanwhile.
    """

    name: str
    command: list[str]
    limit: float
    needs: str | None = None
    measures: bool = False


def sections(out: Path, dry: bool, corpus: Path | None = None) -> list[Section]:
    """Checks before measurements, and within each the important before the others."""
    python = sys.executable
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]

    def own(name: str, limit: float, before: tuple[str, ...] = (), measures: bool = False):
        rows = ["--rows", str(out / f"{name.replace(' ', '-')}.jsonl")]
        command = [*before, python, str(Path(__file__)), "--section", name, *rows]
        command += ["--dry"] if dry else []
        command += ["--corpus", str(corpus)] if corpus else []
        return Section(name, command, limit, before[0] if before else None, measures)

    measured = functools.partial(own, measures=True)
    sanitizer = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
    listed = [
        Section("build", pip, 120, measures=True),
        own("compile", 100),
        Section("doctor", [python, "-m", "sniper.doctor", "--json"], 120),
        Section("tests", tests(), 220),
        own("recording", 120),
        own("memory check", 90, (*sanitizer, "memcheck")),
        own("race check", 90, (*sanitizer, "racecheck")),
        own("torch compile", 150),
        measured("step", 110),
        measured("profile", 40),
        measured("layers", 45),
        measured("attention", 45),
        measured("drop-in", 90),
        measured("compiled step", 90),
        measured("training", 40),
        *([measured("trainer", 90)] if corpus else []),
        measured("rates", 20),
        measured("tiles", 40),
    ]
    return [s for s in listed if not (dry and (s.needs or s.name in ("build", "tests")))]


def tests() -> list[str]:
    """The tests marked `gpu`, on several cores where pytest can."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(16, os.cpu_count() or 1))]
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    # Other files may need packages that are not there. Tests that take `device` run on a GPU too.
    on_gpu = re.compile(r"mark\.gpu|def test_\w+\([^)]*\bdevice\b")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path not in files and on_gpu.search(path.read_text()):
            files.append(path)
    return [*command, "--maxfail", "20", *map(str, files)]


def run_section(section: Section, limit: float, out: Path, env: dict[str, str]) -> dict[str, Any]:
    """Runs one section within `limit` seconds, its output to suite.log; never raises."""
    result: dict[str, Any] = {"section": section.name, "seconds": 0.0, "rows": [], "tail": []}
    if section.needs and shutil.which(section.needs, path=env.get("PATH")) is None:
        return result | {"status": f"left out: {section.needs} is not there"}
    if limit < TOO_SHORT:
        return result | {"status": "left out: no time left"}
    started = time.monotonic()
    own = out / f"{section.name.replace(' ', '-')}.log"
    with own.open("wb") as log:
        try:
            # A group of its own, so that what a section started ends with it.
            process = subprocess.Popen(
                section.command, cwd=ROOT, stdout=log, stderr=log, env=env, start_new_session=True
            )
        except OSError as error:
            own.unlink()
            return result | {"status": f"failed: {error}"}
        try:
            code = process.wait(limit)
            result["status"] = "ok" if code == 0 else f"failed, exit {code}"
        except subprocess.TimeoutExpired:
            result["status"] = f"stopped after {limit:.0f} s"
        finally:  # an interrupted suite leaves nothing behind
            _end(process)
    said = own.read_text(errors="replace").splitlines()
    own.unlink()
    with (out / "suite.log").open("a") as log:
        print(f"\n=== {section.name}: {' '.join(section.command)}", *said, sep="\n", file=log)
    rows = out / f"{section.name.replace(' ', '-')}.jsonl"
    if rows.exists():
        result["rows"] = [json.loads(x) for x in rows.read_text().splitlines() if _is_json(x)]
    # A row that says so is a fault in a section that went on.
    wrong = sum("error" in row and isinstance(row["error"], str) for row in result["rows"])
    if wrong and result["status"] == "ok":
        result["status"] = f"failed: {wrong} of {len(result['rows'])} rows report an error"
    return result | {"seconds": round(time.monotonic() - started, 1), "tail": said[-40:]}


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass  # the driver does not let go of it; the next section may still run


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:  # cut off with its process
        return False
    return True


def facts(dry: bool) -> dict[str, str]:
    """Device, versions and commit, asked of a process of its own: torch may be broken."""
    program = (
        "import sys, json, torch; sys.path.insert(0, sys.argv[1]); import common\n"
        "from sniper.ops import timings\n"
        "d = torch.device(sys.argv[2])\n"
        "sm = 'cpu' if d.type == 'cpu' else 'sm_%d%d' % torch.cuda.get_device_capability(d)\n"
        "print(json.dumps({'device': timings.device_name(d), 'architecture': sm,\n"
        "  'versions': common.versions() + ', triton ' + timings.triton_version(),\n"
        "  'cuda': str(torch.version.cuda), 'commit': common.commit()}))"
    )
    command = [sys.executable, "-c", program, str(BENCH), "cpu" if dry else "cuda"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"device": "unknown", "error": "torch did not answer within 60 s"}
    except (IndexError, ValueError):
        return {"device": "unknown", "error": (done.stderr.strip().splitlines() or ["?"])[-1]}


def write(path: Path, data: Any) -> None:
    """In one go: a reader, or a kill, never meets half a file."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(data, indent=1))
    os.replace(temporary, path)


def show(results: list[dict[str, Any]], about: dict[str, str]) -> int:
    """Prints rows and what failed, then one line a section; returns how many failed."""
    for result in results:
        print(f"\n--- {result['section']}: {result['status']}")
        for row in result["rows"][-90:]:
            print("  ".join(f"{k} {_short(v)}" for k, v in row.items())[:240])
        if result["status"] != "ok" or not result["rows"]:
            print("\n".join(line[:200] for line in result["tail"][-12:]))
    print("\n" + "  ".join(f"{k} {v}" for k, v in about.items()))
    for result in results:
        print(f"{result['section']:14} {result['seconds']:6.1f} s  {result['status']}")
    return sum(result["status"].startswith(("failed", "stopped")) for result in results)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_here(name: str, rows: Path, dry: bool, corpus: Path | None = None) -> None:
    """One section in this process: each row is on disk before the next is measured."""
    import gpu_kernels as kernels
    import gpu_steps as steps

    functions = {
        "compile": kernels.compile_kernels,
        "rates": kernels.rates,
        "layers": kernels.layers,
        "attention": kernels.attention,
        "tiles": kernels.tiles,
        "memory check": kernels.masks,
        "race check": kernels.masks,
        "step": steps.step_times,
        "torch compile": steps.torch_compile,
        "compiled step": steps.compiled_step,
        "recording": steps.recording,
        "training": steps.train,
        "profile": steps.profile,
    }
    if name == "drop-in":
        import gpu_models  # needs `transformers`

        functions[name] = gpu_models.drop_in
    if corpus is not None:
        functions["trainer"] = functools.partial(steps.trainer, corpus)
    with rows.open("w") as file:
        for row in functions[name](dry):
            print(json.dumps(row), file=file, flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    usual = Path(os.environ.get("OUT") or BENCH / "results" / "gpu")
    parser.add_argument("--out", type=Path, default=usual, help="folder of the results")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these sections")
    parser.add_argument("--minutes", type=float, default=10, help="for all of it")
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--corpus", type=Path, help="folder of prepared speech, for the trainer")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.section:
        return run_here(args.section, args.rows, args.dry, args.corpus)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * args.minutes
    chosen = sections(out, args.dry, args.corpus and args.corpus.resolve())
    unknown = set(args.only or ()) - {s.name for s in chosen}
    if unknown:
        parser.error(f"--only: expected some of {', '.join(s.name for s in chosen)}")
    (out / "suite.log").write_bytes(b"")
    for old in (*out.glob("*.json"), *out.glob("*.jsonl")):
        old.unlink()
    # What is compiled and chosen is the suite's own, and comes back with its results.
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "SNIPER_CACHE_DIR": str(out / "cache")}
    env |= {"TRITON_INTERPRET": "1"} if args.dry else {}
    ask = functools.partial(facts, args.dry)
    about, results = ask(), []
    wanted = [s for s in chosen if not args.only or s.name in args.only]
    wanted = [s for s in wanted if not (args.skip_build and s.name == "build")]

    def run(section: Section) -> dict[str, Any]:
        print(f"{section.name} ...", flush=True)
        limit = min(section.limit, deadline - time.monotonic())
        # What is chosen among others that run is not what is fastest; the doctor chooses nothing.
        kept = section.measures or section.name == "doctor"
        more = {} if kept else {"SNIPER_CACHE_DIR": str(out / "cache-of-checks")}
        result = run_section(section, limit, out, env | more)
        write(out / f"{section.name.replace(' ', '-')}.json", {**about, **result})
        return result

    # Beside each other the checks would compile the same kernels, each for itself.
    for first in (s for s in wanted if s.name in FIRST):
        results.append(run(first))
        about = ask()  # without the build there may have been nothing to ask
    checks = [s for s in wanted if not s.measures and s.name not in FIRST]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(checks))) as pool:
        results += pool.map(run, checks)
    shutil.rmtree(out / "cache-of-checks", ignore_errors=True)
    results += [run(s) for s in wanted if s.measures and s.name not in FIRST]
    raise SystemExit(bool(show(results, about)))


if __name__ == "__main__":
    main()
