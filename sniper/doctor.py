# SPDX-License-Identifier: Apache-2.0
"""Says what this machine runs, and why; put its output into a bug report.

    python -m sniper.doctor
    python -m sniper.doctor --config ljspeech-sniper train.device=cuda
    python -m sniper.doctor --json
    python -m sniper.doctor --recheck

Exit status: 0 all that was asked for can be used, 1 something cannot, 2 wrong arguments or
settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, cast

from sniper.command import exit_with, why_missing

if TYPE_CHECKING:
    import torch

    from sniper.training.config import Config


class Unusable(ValueError):
    """What a config asks for and this machine does not have; the text is the whole message."""


def versions() -> dict[str, str]:
    """What is installed, as far as results depend on it."""
    import torch

    from sniper import __version__

    found = {"sniper": __version__, "python": platform.python_version(), "torch": torch.__version__}
    found["CUDA of torch"] = str(torch.version.cuda or "none")
    # Asked of their metadata: a Triton that cannot be imported has a version too, and it is wanted
    # here.
    for package in ("triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu() -> dict[str, Any]:
    """The CPU, its kernels and threads."""
    import torch

    from sniper import _C
    from sniper.ops import timings

    return {
        "name": timings.device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "kernels": _C.cpu.instruction_set(),
        "bfloat16 in hardware": _C.cpu.has_bfloat16(),
        "threads from": _C.cpu.thread_source(),
    }


def extension() -> dict[str, Any]:
    """What the extension was built for."""
    from sniper import _C

    if not _C.with_cuda:
        return {"CUDA": "none: masks of a GPU are computed on the CPU"}
    return {"CUDA": _C.cuda_version, "architectures": _C.cuda_architectures}


def cache() -> dict[str, Any]:
    """Where choices and verdicts are kept, and whether they can be."""
    from sniper.ops.cache_files import cache_folder

    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # By writing, since permissions say nothing about a file system that is full or read-only.
        with tempfile.TemporaryFile(dir=folder):
            writable = True
    except (OSError, RuntimeError) as error:
        return {"folder": "none", "writable": False, "why": str(error)}
    return {"folder": str(folder), "writable": writable}


# What is checked where no config says what is used: dtype and block size.
USUAL = (("bf16", 64), ("tf32", 64))


def gpus(
    check: bool, anew: bool = False, kinds: Sequence[tuple[str, int]] = USUAL
) -> list[dict[str, Any]]:
    """Every GPU with what its kernels were found to do.

    Args:
        check: runs the self-check where nobody has yet; it takes up to some minutes a GPU.
        anew: where somebody has, too.
        kinds: dtype and block size of what is checked.
    """
    import torch

    from sniper.ops import selfcheck
    from sniper.ops.backends.triton import launch
    from sniper.ops.extension import uses_cuda

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        device = torch.device("cuda", index)
        why_not = launch.why_not(index)
        row: dict[str, Any] = {
            "name": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "driver": selfcheck.driver_version(),
            "mask kernels": "on this GPU" if uses_cuda(device) else "on the CPU",
            "block-sparse kernels": why_not or "Triton",
        }
        if check and why_not is None:
            row["self-check"] = {
                selfcheck.what_of(dtype, block): {
                    name: {
                        "ok": verdict.ok,
                        "error": verdict.error,
                        "seconds": round(verdict.seconds, 2),
                        "message": verdict.message,
                    }
                    for name, verdict in selfcheck.check(device, dtype, block, anew).items()
                }
                for dtype, block in (*kinds, ("fp32", selfcheck.NO_BLOCKS))
            }
        found.append(row)
    return found


def kinds_of(config: Config) -> tuple[tuple[str, int], ...]:
    """Dtype and block size of a config's products."""
    return ((config.train.precision, config.sparsity.block_size or 64),)


def layers(config: Config) -> dict[str, Any]:
    """What each pass of each sparse layer of a config's model runs, from one small batch.

    Raises:
        Unusable: a device or precision that this machine does not have.
        ConfigError: settings that do not fit each other.
    """
    import torch

    from sniper.ops import timings
    from sniper.ops.explain import last_runs
    from sniper.training.device import set_up_torch
    from sniper.training.trainer import make_sniper
    from sniper.tts.model.fastspeech2 import FastSpeech2

    device = usable_device(config)
    set_up_torch(config.train)
    features = config.feature_config()
    model = FastSpeech2(config.fastspeech2_config(64, features.n_mels)).to(device)
    snip = make_sniper(model, config)
    result: dict[str, Any] = {"config": config.name, "device": str(device), "layers": {}}
    if snip is None or snip.block_size is None:
        result["why"] = "no blocks are pruned: every layer is torch's own"
        return result
    batch = _batch(features.n_mels, min(config.train.max_frames, 4000)).to(device)
    # Masks of random data do: the times depend on density and shape, not on which blocks are kept.
    snip.score([batch], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
    # The rate is 0, but an optimizer has to be there for the masks to be put on.
    snip.step(0, torch.optim.SGD(model.parameters(), lr=0.0))
    bf16 = config.train.precision == "bf16"
    # A step that is recorded as a graph chooses by time on the device.
    recorded = device.type == "cuda" and config.train.cuda_graphs != "off"
    clock = timings.device_time() if recorded else contextlib.nullcontext()
    # Whoever asks wants the best choice; a training run must keep even an unsure one.
    with timings.looking_again(), clock:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            model.loss(batch)[0].backward()
        result["layers"] = last_runs(model)
    return result


def usable_device(config: Config) -> torch.device:
    """The device that a config asks for, if it can do what the config asks of it.

    Raises:
        Unusable: it is not there, or cannot.
    """
    from sniper.training.device import check_precision, pick_device
    from sniper.training.step import pick_recorder

    try:
        device = pick_device(config.train.device)
        check_precision(device, config.train.precision)
        if device.type == "cpu":
            # It refuses a recording that is asked of a CPU; on a GPU it would set one up.
            pick_recorder(device, config.train.cuda_graphs)
    except ValueError as error:
        raise Unusable(str(error)) from None
    return device


def _batch(n_mels: int, frames: int):
    """Random speech: utterances of 90 tokens and 540 frames, as many as fit."""
    import torch

    from sniper.tts.corpus.batch import Batch

    # Six seconds, about LJSpeech's mean: times depend on the lengths that a batch has.
    size, tokens, each = max(1, frames // 540), 90, 6
    if frames < 540:
        tokens = max(1, frames // each)
    per_token = torch.zeros(size, tokens)
    return Batch(
        ids=[str(i) for i in range(size)],
        tokens=torch.randint(1, 64, (size, tokens)),
        token_lengths=torch.full((size,), tokens),
        mel=torch.randn(size, each * tokens, n_mels),
        mel_lengths=torch.full((size,), each * tokens),
        durations=torch.full((size, tokens), each),
        pitch=per_token,
        energy=per_token,
    )


def report(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Writes everything that is told to `found`, and what cannot be used of what was asked for to
    its `problems`; what was found stays where something raises.

    Raises:
        ConfigError: settings that cannot be used anywhere.
    """
    problems = found["problems"]
    found["versions"] = versions()
    config = None
    if options.config is not None:
        from sniper.training.config import load

        config = load(options.config, options.overrides)
    try:
        found["CPU"] = cpu()
        found["extension"] = extension()
    except ImportError as error:
        # All that follows needs the extension, so the report ends here.
        problems.append(f"the extension cannot be loaded, build sniper again: {error}")
        return
    found["cache"] = cache()
    if not found["cache"]["writable"]:
        problems.append(f"choices are forgotten: {found['cache'].get('why')}")
    kinds = USUAL if config is None else kinds_of(config)
    found["GPUs"] = gpus(not options.no_check, options.recheck, kinds)
    if not found["GPUs"]:
        import torch

        built = "sees none" if torch.version.cuda else "is a build without CUDA"
        found["why no GPU"] = f"torch {built}"
        # The usual reason on a shared machine: a job without a GPU gets an empty list.
        if "CUDA_VISIBLE_DEVICES" in os.environ and torch.version.cuda:
            found["why no GPU"] += f": CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
    for index, gpu in enumerate(found["GPUs"]):
        for kind, families in gpu.get("self-check", {}).items():
            problems += [
                f"GPU {index}: {name} kernels for {kind} are left out: {verdict['message']}"
                for name, verdict in families.items()
                if not verdict["ok"]
            ]
    if config is None:
        return
    try:
        found["runs"] = layers(config)
    except Unusable as error:
        problems.append(f"config {config.name}: {error}")
        return
    why_not = _why_dense(found)
    if why_not:
        problems.append(f"config {config.name}: its block-sparse layers run dense: {why_not}")


def _why_dense(found: dict[str, Any]) -> str | None:
    """What a GPU lacks to run a config's sparse layers."""
    import torch

    device = torch.device(found["runs"]["device"])
    if device.type != "cuda" or not found["runs"]["layers"]:
        return None
    says = found["GPUs"][device.index or 0]["block-sparse kernels"]
    return None if says == "Triton" else says


def told(found: dict[str, Any]) -> str:
    """The report as text: what each pass of a config runs is a table."""
    from sniper.ops.explain import table

    found = dict(found)
    runs = dict(found.pop("runs", {}))
    problems = found.pop("problems")
    lines = render(found)
    if runs:
        rows = runs.pop("layers")
        lines += render({"runs": runs})
        lines += [f"  {line}" for line in table(rows).splitlines()] if rows else []
    return "\n".join([*lines, *render({"problems": problems})])


def render(value: Any, indent: int = 0) -> list[str]:
    """Nested settings as indented lines; what is deep and plain as one."""
    space, lines = "  " * indent, []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        if not isinstance(item, dict | list) or not item:
            lines.append(f"{space}{key}: {item if item or item == 0 else 'none'}")
        elif indent > 1 and isinstance(item, dict) and not _nested(item):
            said = ", ".join(f"{k} {v}" for k, v in item.items() if v not in ("", None))
            lines.append(f"{space}{key}: {said}")
        else:
            lines += [f"{space}{key}:", *render(item, indent + 1)]
    return lines


def _nested(item: dict) -> bool:
    return any(isinstance(v, dict | list) for v in item.values())


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sniper.doctor",
        description="Say what this machine runs, and why.",
        epilog="Exit status: 0 all that was asked for can be used, 1 something cannot, 2 wrong "
        "arguments or settings.",
    )
    parser.add_argument("--config", metavar="NAME_OR_PATH", help="also what each layer would run")
    parser.add_argument("--json", action="store_true", help="one JSON object, for bug reports")
    check = parser.add_mutually_exclusive_group()
    check.add_argument("--no-check", action="store_true", help="no self-check of a GPU's kernels")
    check.add_argument(
        "--recheck", action="store_true", help="check a GPU's kernels again, whatever is known"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of --config")
    options = parser.parse_intermixed_args(argv)
    if options.overrides and options.config is None:
        parser.error("settings: expected --config NAME_OR_PATH with them")
    found: dict[str, Any] = {"problems": []}
    status, message = 0, ""
    try:
        report(options, found)
    except ImportError as error:
        status, message = 1, f"--config: {why_missing(error, 'tts')}"
    except (ValueError, OSError) as error:  # settings; their text is the whole message
        status, message = 2, str(error)
    except RuntimeError as error:  # a GPU that is full or gone: what was found is told all the same
        words = " ".join(str(error).split())[:300]
        found["problems"].append(f"{type(error).__name__}: {words}")
    if message:
        print(f"error: {message}", file=sys.stderr)
        found["error"] = message
    # With an error too: what was found until then is what a bug report needs.
    if options.json:
        print(json.dumps(found, indent=2))
    elif not message:
        print(told(found))
    return status or int(bool(found["problems"]))


if __name__ == "__main__":
    exit_with(main)
