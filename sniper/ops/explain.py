# SPDX-License-Identifier: Apache-2.0
"""Which layer runs what, and why."""

from __future__ import annotations

from torch import nn

from sniper.ops import dispatch
from sniper.ops.layout import BlockLayout

PASSES = ("fwd", "dgrad", "wgrad")


def explain(model: nn.Module) -> str:
    """Prints a table: each block-sparse layer, its density, and by pass what ran last.

    Where candidates were timed, their milliseconds follow; a pass that has not run shows a dash.

    Args:
        model: any module; layers without a block mask run as torch's own and are not listed.

    Returns:
        The table.

    Raises:
        ValueError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"explain: expected a module, got {model!r:.80}")
    rows: list[tuple[str, ...]] = [("layer", "density", *PASSES)]
    for name, module in model.named_modules():
        layout = getattr(module, "layout", None)
        if isinstance(layout, BlockLayout):
            runs = dispatch.last_runs(layout)
            rows.append((name, f"{layout.density:.3f}", *(_cell(runs.get(p)) for p in PASSES)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    table = "\n".join(lines)
    print(table)
    return table


def _cell(run: tuple[str, dict[str, float] | None] | None) -> str:
    if run is None:
        return "-"
    name, times = run
    if not times:
        return name
    return f"{name} ({', '.join(f'{n} {1e3 * t:.2f}' for n, t in times.items())} ms)"
