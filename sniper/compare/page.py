# SPDX-License-Identifier: Apache-2.0
"""report.html: one file with its pictures and its sound in it, that asks no network and runs no
script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sniper.compare import bootstrap, cells, figures, files, rates, timing
from sniper.compare.cells import percent
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
_ACCOUNTS = ("training", "validation", "scoring", "changes", "checkpoints", "wall")


@dataclass
class Table:
    """Columns' names, and rows of cells: text, or markup that is safe."""

    head: list[Any]
    rows: list[list[Any]] = field(default_factory=list)


class Page:
    """The tables and pictures of the report.

    Args:
        data: as `results.collect` gives it, or results.json holds it.
    """

    def __init__(self, data: dict[str, Any]):
        self.data, self.arms = data, data["arms"]
        self.reference = next(arm for arm in self.arms if arm["name"] == data["reference"])
        self.judged = {arm["name"]: rates.judge(arm, self.reference) for arm in self.arms}

    def name(self, arm: dict[str, Any], note: bool = False) -> Any:
        """An arm's line and label."""
        from markupsafe import Markup

        index = self.arms.index(arm)
        line = f"{figures.line_style(arm, index)} {figures.COLORS[index % len(figures.COLORS)]}"
        swatch = Markup('<span class="swatch" style="border-top: 3px {}"></span>').format(line)
        return (
            swatch
            + arm["label"]
            + (cells.small(arm["note"], "note") if note and arm["note"] else "")
        )

    def glance(self) -> Table:
        """The main figures."""
        to = self.reference["label"]
        head = ["arm", "validation loss at the end", f"difference to {to}", "frames/s"]
        table = Table([*head, "training seconds", f"times faster to {to}’s best loss"])
        for arm in self.arms:
            loss, rest = arm["final_loss"], ["is the reference", "1×"]
            if arm is not self.reference:
                times = arm["time_to_loss"]
                rest = [cells.difference(arm["metrics"]["final"]["loss"], 3) or cells.NOTHING]
                rest += [self._reached(arm, times[-1]) if times else cells.NOTHING]
            row = [self.name(arm, note=True), cells.mean_sd(loss["mean"], loss["sd"], 3), rest[0]]
            row += [self._speed(arm), cells.number(arm["accounts"]["training"]), rest[1]]
            table.rows.append(row)
        return table

    def _reached(self, arm: dict[str, Any], cell: dict[str, Any]) -> Any:
        if arm is self.reference:
            return "1×"
        return cells.reached(cell, self.judged[arm["name"]])

    def _speed(self, arm: dict[str, Any]) -> Any:
        own = rates.judge(arm, arm)
        text = cells.number(arm["frames_per_second"])
        if own.steady or own.spread is None:
            return text
        return cells.Markup("{}{}").format(
            text, cells.small(f"varied by {percent(own.spread)}", "bad")
        )

    def early(self) -> Table:
        """Losses against the reference's, early in training."""
        of = [f"{percent(f)} of the" for f in timing.EARLY]
        table = Table(
            ["arm", *(f"{share} {kind}" for kind in ("epochs", "seconds") for share in of)]
        )
        for arm in self.arms:
            if not arm["early"]:
                continue
            row = [cells.early(e["by_epoch"], e["by_epoch_sd"]) for e in arm["early"]]
            if self.judged[arm["name"]].steady:
                row += [cells.early(e["by_seconds"], e["by_seconds_sd"]) for e in arm["early"]]
            else:
                row += ["withheld"] * len(arm["early"])
            table.rows.append([self.name(arm), *row])
        return table

    def by_epoch(self) -> Table:
        """Validation losses, means over seeds; what the curves show."""
        table = Table(["epoch", *map(self.name, self.arms)])
        curves = [figures.mean_curve(arm["runs"], "epoch", "loss") for arm in self.arms]
        for i in range(max(map(len, curves), default=0)):
            row = [cells.number(c[i, 1], 3) if i < len(c) else cells.NOTHING for c in curves]
            table.rows.append([i + 1, *row])
        return table

    def time_to_loss(self) -> Table:
        """When the reference's losses are reached."""
        table = Table(["arm"])
        for t in self.reference["time_to_loss"]:
            loss, seconds = cells.number(t["loss"], 3), cells.number(t["reference_seconds"])
            table.head.append(
                f"{percent(t['fraction'])}: loss {loss} after {seconds}\N{NO-BREAK SPACE}s"
            )
        for arm in self.arms:
            if arm["time_to_loss"]:
                found = [self._reached(arm, cell) for cell in arm["time_to_loss"]]
                table.rows.append([self.name(arm), *found])
        return table

    def stages(self) -> Table:
        """Sparsity and speed of each stage."""
        head = ["arm", "sparsity", "epochs", "active weights", "frames/s"]
        table = Table([*head, f"to {self.reference['label']}"])
        reference = rates.stage_rates(self.reference)
        for arm in self.arms:
            together = self.judged[arm["name"]].side_by_side
            for i, rate in enumerate(rates.stage_rates(arm)):
                stage, ratio = arm["stages"][i], "–"
                if len(reference) == 1:  # with several, there is no one rate to divide by
                    spreads = [rate.spread, reference[0].spread]
                    worst = None if None in spreads else max(spreads)
                    judged = rates.Judgement(worst, together)
                    ratio = cells.ratio(rate.p50 / reference[0].p50, judged)
                first, last = stage["first"] + 1, stage["first"] + stage["epochs"]
                row = [percent(stage["sparsity"]), f"{first}–{last}", percent(stage["density"], 1)]
                table.rows.append([self.name(arm) if i == 0 else "", *row, cells.rate(rate), ratio])
        return table

    def accounts(self) -> Table:
        """Where the seconds went."""
        table = Table(["arm", *_ACCOUNTS])
        for arm in self.arms:
            if arm["stages"]:
                spent = {k: arm["accounts"][k] for k in _ACCOUNTS}
                fine = ("scoring", "changes")
                row = [cells.number(v, 2 if k in fine else 0) for k, v in spent.items()]
                table.rows.append([self.name(arm), *row])
        return table

    def held_out(self, which: str) -> Table:
        """Held-out sentences, spoken by the `final` or the `best` checkpoints."""
        table = Table(["arm", *(label for _, label, *_ in METRICS)])
        for arm in self.arms:
            row = [self.name(arm)]
            for key, _, digits, scale in METRICS:
                cell = arm["metrics"][which][key]
                mean = cells.mean_sd(cell["mean"], cell["sd"], digits, scale)
                row.append(mean + cells.difference(cell, digits, scale))
            if which == "best" and arm["best_epochs"]:
                row[0] += cells.small(f"epochs {', '.join(map(str, arm['best_epochs']))}")
            table.rows.append(row)
        return table

    def masks(self) -> list[dict[str, Any]]:
        """For each arm with blocks its drawn layers, and for each of these a picture a stage."""
        result = []
        for arm in self.arms:
            layers = []
            for name, layer in figures.drawn_layers(self.data, arm).items():
                pictures = [
                    (float(s), layer["density"][s], *figures.mask_image(layer["blocks"], bits))
                    for s, bits in layer["masks"].items()
                    if float(s) > 0
                ]
                layers.append((name, pictures))
            if layers:
                result.append({"name": self.name(arm), "layers": layers})
        return result

    def densities(self) -> list[tuple[Any, Table]]:
        """Share of active weights by parameter and stage; most pruned first."""
        result = []
        for arm in self.arms:
            layers = sorted(
                arm["layers"].items(), key=lambda item: min(item[1]["density"].values())
            )
            if not layers:
                continue
            stages = [s for s in layers[0][1]["density"] if float(s) > 0]
            table = Table(["parameter", "weights", *(percent(float(s)) for s in stages)])
            for name, layer in layers:
                shares = [percent(layer["density"][s]) for s in stages]
                table.rows.append([name, cells.number(layer["numel"]), *shares])
            result.append((self.name(arm), table))
        return result

    def panels(self) -> list[tuple[Any, str]]:
        """Arms whose curves have a panel of their own, and its name among `figures.charts`."""
        return [(self.name(arm), f"panel-{index}") for index, arm in enumerate(self.arms)]

    def warnings(self) -> list[str]:
        """What a reader has to know before the figures."""
        found = []
        for arm in self.arms:
            for run in arm["runs"]:
                who = f"{arm['label']}, seed {run['seed']},"
                if run["status"] == "diverged":
                    found.append(f"{who} diverged: {run['message']}")
                elif run["status"] != "trained":
                    why = f": {run['message']}" if run["message"] else ""
                    found.append(f"{who} is not finished ({run['status']}){why}")
        if len(self.data["machines"]) > 1:
            found.append(
                "The runs come from different machines or versions: their times do not compare."
            )
        return found + self._doubts()

    def _doubts(self) -> list[str]:
        """About speed."""
        found, to = [], self.reference["label"]
        own = {arm["label"]: rates.judge(arm, arm) for arm in self.arms if arm["stages"]}
        varied = [
            f"{label}: {percent(each.spread)}"
            for label, each in own.items()
            if each.spread is not None and each.spread > rates.LIMIT
        ]
        if varied:
            found.append(
                f"Something else was running: within a stage the frames per second varied by more "
                f"than {percent(rates.LIMIT)} ({'; '.join(varied)}). Ratios that rest on them are "
                "withheld; run the comparison on a quiet machine."
            )
        others = [arm for arm in self.arms if arm is not self.reference and arm["time_to_loss"]]
        apart = [arm for arm in others if not self.judged[arm["name"]].side_by_side]
        if apart:
            who = "all other arms" if apart == others else "; ".join(a["label"] for a in apart)
            known = all(self.judged[arm["name"]].side_by_side is not None for arm in apart)
            how = f"did not run while {to} ran" if known else f"not known to have run beside {to}"
            found.append(
                f"† {how}: {who}. Ratios of their times hold as far as the machine was equally "
                "busy throughout."
            )
        return found


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
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template("report.html").render(
        d=data,
        page=Page(data),
        charts=figures.charts(data),
        voices=voices,
        n_mels=n_mels,
        replicates=bootstrap.REPLICATES,
        limit=rates.LIMIT,
    )
    files.write_text(folder / "report.html", text)
    return folder / "report.html"


def find_voices(data: dict[str, Any], runs: Sequence[Run], truth: Path) -> list[dict[str, Any]]:
    """For each sentence its text and `clips`: label and address of the recording, of the truth and
    of each arm's first seed.

    Args:
        truth: folder of the held-out sentences.
    """
    first = {run.arm.name: run.folder for run in runs if run.seed == data["seeds"][0]}
    voices = []
    for index, sentence in enumerate(data["spoken"]):
        clips = {
            "recording": truth / f"{index}-recorded.mp3",
            "truth, same vocoder": truth / f"{index}.mp3",
        }
        for arm in data["arms"]:
            if any(run["status"] == "trained" for run in arm["runs"][:1]):
                clips[arm["label"]] = first[arm["name"]] / "samples" / f"{index}.mp3"
        there = [
            (label, figures.data_uri("audio/mpeg", path.read_bytes()))
            for label, path in clips.items()
            if path.exists()
        ]
        voices.append({**sentence, "clips": there})
    return voices
