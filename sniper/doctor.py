# SPDX-License-Identifier: Apache-2.0
"""Says what this machine runs, and why; put its output into a bug report.

    python -m sniper.doctor
    python -m sniper.doctor --config ljspeech-sniper train.device=cuda
    python -m sniper.doctor --json

Exit status: 0 all that was asked for can be used, 1 something cannot, 2 wrong arguments or
settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from sniper.command import exit_with


class Unusable(ValueError):
    """What a config asks for and this machine does not have; the text is the whole message."""


def versions() -> dict[str, str]:
    """What is installed, as far as results depend on it."""
    import torch

    from sniper import __version__

    found = {"sniper": __version__, "python": platform.python_version(), "torch": torch.__version__}
    found["CUDA of torch"] = str(torch.version.cuda or "none")
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


def cache() -> dict[str, Any]:
    """Where choices and verdicts are kept, and whether they can be."""
    from sniper.ops import timings

    try:
        folder = timings.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            writable = True
    except (OSError, RuntimeError) as error:
        return {"folder": "none", "writable": False, "why": str(error)}
    return {"folder": str(folder), "writable": writable}


def gpus(check: bool) -> list[dict[str, Any]]:
    """Every GPU with what its kernels were found to do.

    Args:
        check: runs the self-check where nobody has yet; it takes up to some minutes a GPU.
    """
    import torch

    from sniper.ops import extension, selfcheck
    from sniper.ops.backends.triton import launch

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
            "mask kernels": "on this GPU" if extension.uses_cuda(device) else "on the CPU",
            "block-sparse kernels": why_not or "Triton",
        }
        if check and why_not is None:
            row["self-check"] = {
                dtype: {
                    name: {
                        "ok": verdict.ok,
                        "error": verdict.error,
                        "seconds": round(verdict.seconds, 2),
                        "message": verdict.message,
                    }
                    for name, verdict in selfcheck.check(device, dtype, 64).items()
                }
                for dtype in ("bf16", "tf32")
            }
        found.append(row)
    return found


def layers(name: str, overrides: list[str]) -> dict[str, Any]:
    """What each pass of each sparse layer of a config's model runs, from one small batch.

    Raises:
        ConfigError: settings that cannot be used here.
    """
    import torch

    from sniper.ops import dispatch, timings
    from sniper.ops.layout import BlockLayout
    from sniper.training.config import load
    from sniper.training.device import pick_device, set_up_torch
    from sniper.training.trainer import make_sniper
    from sniper.tts.model.fastspeech2 import FastSpeech2

    timings.look_again()
    config = load(name, overrides)
    try:
        device = pick_device(config.train.device)
    except ValueError as error:
        raise Unusable(str(error)) from None
    set_up_torch(config.train)
    features = config.feature_config()
    model = FastSpeech2(config.fastspeech2_config(64, features.n_mels)).to(device)
    snip = make_sniper(model, config)
    result: dict[str, Any] = {"config": config.name, "device": str(device), "layers": {}}
    if snip is None or snip.block_size is None:
        result["why"] = "no blocks are pruned: every layer is torch's own"
        return result
    batch = _batch(features.n_mels, min(config.train.max_frames, 4000)).to(device)
    snip.score([batch], lambda m, b: cast(FastSpeech2, m).loss(b)[0])
    snip.step(0, torch.optim.SGD(model.parameters(), lr=0.0))
    bf16 = config.train.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        model.loss(batch)[0].backward()
    for layer, module in model.named_modules():
        layout = getattr(module, "layout", None)
        if isinstance(layout, BlockLayout):
            runs = dispatch.last_runs(layout)
            result["layers"][layer] = {"density": round(layout.density, 3)} | {
                which: _said(runner, times) for which, (runner, times) in runs.items()
            }
    return result


def _said(runner: str, times: dict[str, float] | None) -> str:
    measured = [f"{name} {1e3 * seconds:.2f}" for name, seconds in (times or {}).items()]
    return f"{runner} ({', '.join(measured)} ms)" if measured else f"{runner} (nothing else can)"


def _batch(n_mels: int, frames: int):
    """Random speech: utterances of 90 tokens and 540 frames, as many as fit."""
    import torch

    from sniper.tts.corpus.batch import Batch

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


def report(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Everything that is told, and what cannot be used of what was asked for."""
    found: dict[str, Any] = {"versions": versions()}
    problems = []
    try:
        found["CPU"] = cpu()
        found["cache"] = cache()
        found["GPUs"] = gpus(check=not options.no_check)
    except ImportError as error:
        problems.append(f"the extension cannot be loaded, build sniper again: {error}")
        return found, problems
    if not found["cache"]["writable"]:
        problems.append(f"choices are forgotten: {found['cache'].get('why')}")
    if not found["GPUs"]:
        import torch

        built = "sees none" if torch.version.cuda else "is a build without CUDA"
        found["why no GPU"] = f"torch {built}"
    for index, gpu in enumerate(found["GPUs"]):
        for dtype, families in gpu.get("self-check", {}).items():
            problems += [
                f"GPU {index}: {name} kernels in {dtype} are left out: {verdict['message']}"
                for name, verdict in families.items()
                if not verdict["ok"]
            ]
    if options.config:
        found["runs"] = layers(options.config, options.overrides)
    return found, problems


def render(value: Any, indent: int = 0) -> list[str]:
    """Nested settings as indented lines."""
    space = "  " * indent
    if isinstance(value, dict):
        if value and all(not isinstance(v, dict | list) for v in value.values()) and indent > 1:
            return [space + ", ".join(f"{k} {v}" for k, v in value.items() if v not in ("", None))]
        lines = []
        for key, item in value.items():
            nested = isinstance(item, dict | list)
            lines += (
                [f"{space}{key}:", *render(item, indent + 1)]
                if nested and item
                else [f"{space}{key}: {item if item or item == 0 else 'none'}"]
            )
        return lines
    if isinstance(value, list):
        return [line for i, item in enumerate(value) for line in _numbered(i, item, indent)]
    return [f"{space}{value}"]


def _numbered(number: int, item: Any, indent: int) -> list[str]:
    return [f"{'  ' * indent}{number}:", *render(item, indent + 1)]


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
    parser.add_argument("--no-check", action="store_true", help="no self-check of a GPU's kernels")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of --config")
    options = parser.parse_args(argv)
    if options.overrides and not options.config:
        parser.error("settings: expected --config NAME_OR_PATH with them")
    try:
        found, problems = report(options)
    except ImportError as error:
        if (error.name or "sniper").startswith("sniper"):
            raise
        print(f"error: --config: {error}: pip install 'sniper-tts[tts]'", file=sys.stderr)
        return 1
    except ValueError as error:  # settings; their text is the whole message
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Unusable) else 2
    found["problems"] = problems
    print(json.dumps(found, indent=2) if options.json else "\n".join(render(found)))
    return 1 if problems else 0


if __name__ == "__main__":
    exit_with(main)
