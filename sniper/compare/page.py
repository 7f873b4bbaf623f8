# SPDX-License-Identifier: Apache-2.0
"""report.html: one file with its data, its sound and its scripts in it, that asks no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sniper.compare import bootstrap, files, timing
from sniper.compare.figures import line_style
from sniper.compare.matrix import Run

ASSETS = Path(__file__).parent / "assets"
_METRICS = (
    {"key": "loss", "label": "loss", "unit": "", "digits": 3},
    {"key": "mel_l1", "label": "mel L1", "unit": "", "digits": 3},
    {"key": "mcd", "label": "mel-cepstral distortion", "unit": "dB", "digits": 2},
    {"key": "log_f0_rmse", "label": "ln F0 error", "unit": "RMS", "digits": 3},
    {"key": "voicing_error", "label": "voicing error", "unit": "%", "digits": 1, "percent": True},
    {"key": "duration_ms", "label": "duration error", "unit": "ms", "digits": 1},
    {"key": "length_percent", "label": "length error", "unit": "%", "digits": 1},
)
_ACCOUNTS = ("training", "validation", "scoring", "changes", "checkpoints", "wall")
_MINUS = "\N{MINUS SIGN}"


def write_page(data: dict[str, Any], runs: Sequence[Run], truth: Path, folder: Path) -> Path:
    """Writes report.html.

    Args:
        data: as `results.collect` gives it.
        runs: whose samples are played; the first seed's.
        truth: folder of the held-out sentences.

    Returns:
        Its path.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["dictsort_density"] = _sparsest_first
    environment.globals |= {
        "number": number,
        "signed": signed,
        "pm": mean_sd,
        "verdict": verdict,
        "mark": lambda cell: {"good": "▼", "bad": "▲", "": "◦"}[verdict(cell)],
        "reached": reached,
        "early": early,
    }
    # They hold no template code, and escaping would break them; JSON must not end the script.
    css, js = ((ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    arms = [{**arm, **_more(arm, index, data)} for index, arm in enumerate(data["arms"])]
    text = environment.get_template("report.html").render(
        d={**data, "arms": arms},
        css=_raw(css),
        js=_raw(js),
        json=_raw(files.dumps(_drawn(data, arms)).replace("<", "\\u003c")),
        reference=next(arm for arm in arms if arm["name"] == data["reference"]),
        warnings=warnings(data),
        metrics=[{"percent": False, **metric} for metric in _METRICS],
        account_keys=_ACCOUNTS,
        early_fractions=timing.EARLY,
        fastest=max(
            (s["frames_per_second"] for arm in arms for s in arm["stages"]),
            default=1.0,
        ),
        voices=_voices(data, arms, runs, truth),
        any_layers=any(arm["layers"] for arm in arms),
        first_open=next((arm["index"] for arm in reversed(arms) if arm["draws"]), -1),
        n_mels=runs[0].config.feature_config().n_mels,
        replicates=bootstrap.REPLICATES,
    )
    files.write_text(folder / "report.html", text)
    return folder / "report.html"


def _raw(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _more(arm: dict[str, Any], index: int, data: dict[str, Any]) -> dict[str, Any]:
    """What the page needs to show an arm."""
    layers = arm["layers"]
    first = next(iter(layers.values()), {"density": {}})
    stages = list(first["density"])
    return {
        "index": index,
        "line": line_style(arm, index),
        "draws": any(name in layers and "masks" in layers[name] for name in data["drawn"]),
        "shown_stages": [s for s in stages if float(s) > 0],
    }


def _drawn(data: dict[str, Any], arms: list[dict[str, Any]]) -> dict[str, Any]:
    """What the charts need of the data."""
    keys = ("name", "label", "line")
    return {
        **{key: data[key] for key in ("reference", "seeds")},
        "arms": [
            {
                **{key: arm[key] for key in keys},
                "runs": [{k: v for k, v in run.items() if k != "terms"} for run in arm["runs"]],
                "layers": {n: arm["layers"][n] for n in data["drawn"] if n in arm["layers"]},
            }
            for arm in arms
        ],
    }


def warnings(data: dict[str, Any]) -> list[str]:
    """What a reader has to know before the figures."""
    found = []
    for arm in data["arms"]:
        for run in arm["runs"]:
            if run["status"] == "diverged":
                found.append(f"{arm['label']}, seed {run['seed']}, diverged: {run['message']}")
            elif run["status"] != "trained":
                why = f": {run['message']}" if run["message"] else ""
                found.append(
                    f"{arm['label']}, seed {run['seed']}, is not finished ({run['status']}){why}"
                )
    if len(data["machines"]) > 1:
        found.append(
            "The runs come from different machines or versions: their times do not compare."
        )
    return found


def _sparsest_first(layers: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(layers.items(), key=lambda item: next(iter(item[1]["density"].values())))


def _voices(
    data: dict[str, Any], arms: list[dict[str, Any]], runs: Sequence[Run], truth: Path
) -> list[dict[str, Any]]:
    """For each sentence its text and clips: recording, truth, each arm."""
    first = {run.arm.name: run.folder for run in runs if run.seed == data["seeds"][0]}
    voices = []
    for index, sentence in enumerate(data["spoken"]):
        clips = [
            ("recording", truth / f"{index}-recorded.mp3", None),
            ("truth, same vocoder", truth / f"{index}.mp3", None),
        ]
        clips += [
            (arm["label"], first[arm["name"]] / "samples" / f"{index}.mp3", arm)
            for arm in arms
            if any(run["status"] == "trained" for run in arm["runs"][:1])
        ]
        there = [
            {"label": label, "source": _data_uri(path), "arm": arm}
            for label, path, arm in clips
            if path.exists()
        ]
        voices.append({**sentence, "clips": there})
    return voices


def _data_uri(path: Path) -> str:
    return f"data:audio/mpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def number(value: float | None, digits: int) -> str:
    """With thin spaces between thousands; a dash for nothing."""
    if value is None or value != value:
        return "–"
    text = f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return text if not text.startswith("-") or float(f"{value:.{digits}f}") else text[1:]


def signed(value: float | None, digits: int, percent: bool = False) -> str:
    """With its sign, a true minus."""
    if value is None or value != value:
        return "–"
    text = f"{value * (100 if percent else 1):+.{digits}f}"
    return text.replace("-", _MINUS)


def mean_sd(cell: dict[str, Any], digits: int, percent: bool = False) -> str:
    """`mean ± sd`, the second where there is one."""
    scale = 100 if percent else 1

    def show(value: float | None) -> str | None:
        return None if value is None or value != value else number(value * scale, digits)

    mean, sd = show(cell["mean"]), show(cell["sd"])
    return "–" if mean is None else mean if sd is None else f"{mean} ± {sd}"


def verdict(cell: dict[str, Any]) -> str:
    """`good` when the whole interval of the difference is below 0, `bad` when above."""
    if cell["high"] is not None and cell["high"] < 0:
        return "good"
    return "bad" if cell["low"] is not None and cell["low"] > 0 else ""


def reached(cell: dict[str, Any] | None, is_reference: bool) -> Any:
    """A time to loss: the ratio to the reference, or how many seeds got there."""
    from markupsafe import Markup

    if cell is None:
        return "–"
    if is_reference:
        return "1×"
    if cell["speedup"] is None:
        return (
            f"reached by {cell['reached']} of {cell['seeds']}" if cell["reached"] else "not reached"
        )
    sd = "" if cell["speedup_sd"] is None else f" ± {cell['speedup_sd']:.2f}"
    kind = "good" if cell["speedup"] > 1 else "bad"
    return Markup('<span class="{}">{:.2f}×</span>{}<span class="sub">{:.2f}×</span>').format(
        kind, cell["speedup"], sd, cell["speedup_with_extra"]
    )


def early(mean: float | None, sd: float | None) -> Any:
    """A difference of early losses."""
    from markupsafe import Markup

    if mean is None:
        return "–"
    spread = "" if sd is None else f" ± {sd:.3f}"
    kind = "" if sd is not None and abs(mean) <= sd else "good" if mean < 0 else "bad"
    return Markup('<span class="{}">{}</span>{}').format(kind, signed(mean, 3), spread)
