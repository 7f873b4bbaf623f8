# SPDX-License-Identifier: Apache-2.0
"""Which layer runs what, and why."""

from __future__ import annotations

from torch import nn

from sniper.ops import dispatch
from sniper.ops.layout import BlockLayout

PASSES = ("fwd", "dgrad", "wgrad")
NO_MASKS = (
    "no layer has a block mask, so all of them run as torch's own: Sniper.step and set_block_mask "
    "give masks to the layers that sparsify has made block-sparse"
)


def explain(model: nn.Module) -> str:
    """Prints a table: each block-sparse layer, its density, and by pass what ran last and why.

    Where candidates were timed, their milliseconds follow, else what kept the others out; a pass
    that has not run shows a dash.

    Args:
        model: any module; layers without a block mask run as torch's own and are not listed.

    Returns:
        The table, or a sentence where no layer has a block mask.

    Raises:
        ValueError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"explain: expected a module, got {model!r:.80}")
    runs = last_runs(model)
    text = table(runs) if runs else NO_MASKS
    print(text)
    return text


def last_runs(model: nn.Module) -> dict[str, dict[str, float | str]]:
    """By layer: its density and, for each pass that has run, what ran last and why."""
    found = {}
    for name, module in model.named_modules():
        # By attribute, not by class: the layers import this package, and it cannot import them.
        layout = getattr(module, "layout", None)
        if isinstance(layout, BlockLayout):
            runs = dispatch.last_runs(layout)
            found[name] = {"density": round(layout.density, 3)} | {
                which: _said(*run) for which, run in runs.items()
            }
    return found


def table(runs: dict[str, dict[str, float | str]]) -> str:
    """What `last_runs` gives, with a line for each layer."""
    rows: list[tuple[str, ...]] = [("layer", "density", *PASSES)]
    for name, row in runs.items():
        rows.append((name, f"{row['density']:.3f}", *(str(row.get(p, "-")) for p in PASSES)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join(lines)


def _said(name: str, times: dict[str, float] | None, alone: str) -> str:
    measured = [f"{candidate} {1e3 * t:.2f}" for candidate, t in (times or {}).items()]
    why = [f"{', '.join(measured)} ms"] if measured else []
    why += [alone] if alone else []
    return f"{name} ({'; '.join(why)})" if why else name
