# SPDX-License-Identifier: Apache-2.0
"""report.html: one file with its pictures and its sound in it, that asks no network and runs no
script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sniper.compare import bootstrap, cells, claims, figures, files, rates, timing
from sniper.compare.matrix import Run

ASSETS = Path(__file__).parent / "assets"
# Of a metric: its key, its name and unit, digits, and what it is multiplied by.
METRICS = (
    ("loss", "loss", 3, 1),
    ("mel_l1", "mel L1", 3, 1),
    ("mcd", "mel-cepstral distortion, dB", 2, 1),
    ("log_f0_rmse", "ln F0 error, RMS", 3, 1),
    ("voicing_error", "voicing error, %", 1, 100),
    ("duration_ms", "duration error, ms", 1, 1),
    ("length_percent", "length error, %", 1, 1),
)


def write_page(
    data: dict[str, Any], voices: Sequence[dict[str, Any]], folder: Path, n_mels: int = 80
) -> Path:
    """Writes report.html.

    Args:
        data: as `results.collect` gives it, or results.json of any version holds it.
        voices: as `find_voices` gives them; empty: nothing to listen to.
        n_mels: mel bands of the features.

    Returns:
        Its path.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        # A misspelt name in the template is an error, not an empty cell.
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    reference = _reference(data)
    arms = [
        {
            **{"setbacks": [], "sooner": None},  # which results of earlier versions lack
            **arm,
            "swatch": f"{figures.line_style(arm, i)} {figures.COLORS[i % len(figures.COLORS)]}",
            "panel": f"panel-{i}",
            "is_reference": arm is reference,
            "judged": rates.judge(arm, reference),
            "spread": rates.judge(arm, arm).spread,
            "stages": stages(arm, reference),
            "curve": figures.mean_curve(arm["runs"], "epoch", "loss")[:, 1].tolist(),
            "masks": masks(data, arm),
            "layers": dict(sorted(arm["layers"].items(), key=_least_dense)),
        }
        for i, arm in enumerate(data["arms"])
    ]
    text = environment.get_template("report.html").render(
        d={"vocoder": None, "claims": [], "words": [], **data, "arms": arms},
        to=reference["label"],
        reference=reference,
        units=claims.UNITS,
        stages=[{**stage, "arm": arm} for arm in arms for stage in arm["stages"]],
        setbacks=[{**change, "arm": arm} for arm in arms for change in arm["setbacks"]],
        cells=cells,
        charts=figures.charts(data),
        warnings=warnings(data),
        voices=voices,
        metrics=METRICS,
        early=timing.EARLY,
        limit=rates.LIMIT,
        n_mels=n_mels,
        replicates=bootstrap.REPLICATES,
    )
    files.write_text(folder / "report.html", text)
    return folder / "report.html"


def _reference(data: dict[str, Any]) -> dict[str, Any]:
    return next(arm for arm in data["arms"] if arm["name"] == data["reference"])


def _least_dense(layer: tuple[str, dict[str, Any]]) -> float:
    return min(layer[1]["density"].values())


def stages(arm: dict[str, Any], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """An arm's stages, each with its `rate`, and its `ratio` to the reference as a cell."""
    theirs = rates.stage_rates(reference)
    together = rates.judge(arm, reference).side_by_side
    result = []
    for stage, rate in zip(arm["stages"], rates.stage_rates(arm), strict=True):
        ratio: Any = cells.NOTHING
        if len(theirs) == 1:  # with several, there is no one rate to divide by
            spreads = [s for s in (rate.spread, theirs[0].spread) if s is not None]
            # A ratio is as unsure as the less steady of its two rates, and if one is not known, so
            # is the ratio.
            judged = rates.Judgement(max(spreads) if len(spreads) == 2 else None, together)
            ratio = cells.ratio(rate.p50 / theirs[0].p50, judged)
        result.append({**stage, "rate": rate, "ratio": ratio})
    return result


def masks(data: dict[str, Any], arm: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """By drawn layer, for each stage: its sparsity, the layer's share of active blocks, a picture's
    address and its width in blocks.
    """
    return {
        name: [
            (float(stage), layer["density"][stage], *figures.mask_image(layer["blocks"], bits))
            for stage, bits in layer["masks"].items()
            if float(stage) > 0
        ]
        for name, layer in arm["layers"].items()
        if name in data["drawn"] and "masks" in layer
    }


def warnings(data: dict[str, Any]) -> list[str]:
    """What a reader has to know before the figures."""
    found = []
    for arm in data["arms"]:
        for run in arm["runs"]:
            who = f"{arm['label']}, seed {run['seed']},"
            if run["status"] == "diverged":
                found.append(f"{who} diverged: {run['message']}")
            elif run["status"] != "trained":
                why = f": {run['message']}" if run["message"] else ""
                found.append(f"{who} is not finished ({run['status']}){why}")
    if len(data["machines"]) > 1:
        found.append(
            "The runs come from different machines or versions: their times do not compare."
        )
    return found + _doubts_about_speed(data)


def _doubts_about_speed(data: dict[str, Any]) -> list[str]:
    found, reference = [], _reference(data)
    spreads = {arm["label"]: rates.judge(arm, arm).spread or 0.0 for arm in data["arms"]}
    varied = [f"{k}: {cells.percent(v)}" for k, v in spreads.items() if v > rates.LIMIT]
    if varied:
        found.append(
            "Something else was running: within a stage the frames per second varied by more than "
            f"{cells.percent(rates.LIMIT)} ({'; '.join(varied)}). Ratios that rest on them are "
            "withheld; run the comparison on a quiet machine."
        )
    others = [arm for arm in data["arms"] if arm is not reference and arm["time_to_loss"]]
    together = {arm["label"]: rates.judge(arm, reference).side_by_side for arm in others}
    apart = [label for label, side_by_side in together.items() if not side_by_side]
    if apart:
        to, known = reference["label"], None not in together.values()
        how = f"did not run while {to} ran" if known else f"not known to have run beside {to}"
        who = "all other arms" if len(apart) == len(others) else "; ".join(apart)
        found.append(
            f"† {how}: {who}. Ratios of their times hold as far as the machine was equally busy "
            "throughout."
        )
    return found


def find_voices(data: dict[str, Any], runs: Sequence[Run], truth: Path) -> list[dict[str, Any]]:
    """For each sentence its text and `clips`: label and address of the recording, of the truth and
    of each arm's first seed.

    Args:
        truth: folder of the held-out sentences.
    """
    # One seed is enough to hear by, and all of them would be megabytes.
    first: dict[str, Path] = {}
    for run in runs:  # in the order of the seeds; an arm may not have all of them
        first.setdefault(run.arm.name, run.folder)
    voices = []
    for index, sentence in enumerate(data["spoken"]):
        clips = [
            ("recording", truth / f"{index}-recorded.mp3"),
            ("truth, same vocoder", truth / f"{index}.mp3"),
        ]
        for arm in data["arms"]:
            # An older sample may still lie in the folder of a run that goes on.
            if any(run["status"] == "trained" for run in arm["runs"][:1]):
                clips.append((arm["label"], first[arm["name"]] / "samples" / f"{index}.mp3"))
        there = [
            (label, figures.data_uri("audio/mpeg", path.read_bytes()))
            for label, path in clips
            if path.exists()
        ]
        voices.append({**sentence, "clips": there})
    return voices
