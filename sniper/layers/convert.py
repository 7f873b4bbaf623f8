# SPDX-License-Identifier: Apache-2.0
"""Plain layers into block-sparse ones and back, in place."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from sniper.layers.conv1d import BlockSparseConv1d
from sniper.layers.linear import BlockSparseLinear
from sniper.layers.masked import check_block_size

_SPARSE = {nn.Linear: BlockSparseLinear, nn.Conv1d: BlockSparseConv1d}
_PLAIN = {sparse: plain for plain, sparse in _SPARSE.items()}


@dataclass(frozen=True)
class ModuleReport:
    """What became of one module that holds a weight matrix.

    Attributes:
        name: qualified module name.
        kind: its class before.
        shape: its weight's shape.
        reason: why it was left as it is; empty when it was taken.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str = ""

    @property
    def taken(self) -> bool:
        """Whether the module is block-sparse now."""
        return not self.reason

    @property
    def numel(self) -> int:
        """Weights in it, biases not counted."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify` did, module by module; `print` shows it as a table.

    Attributes:
        modules: every Linear- or Conv-like module of the model.
        block_size: edge of a block.
        total: all parameters of the model.
    """

    modules: tuple[ModuleReport, ...]
    block_size: int
    total: int

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of the modules that are block-sparse now."""
        return tuple(m.name for m in self.modules if m.taken)

    def __str__(self) -> str:
        rows = [("module", "class", "weight", "share", "")]
        for m in self.modules:
            shape = "x".join(map(str, m.shape))
            share = f"{m.numel / max(self.total, 1):.1%}"
            rows.append(
                (m.name, m.kind, shape, share, m.reason or f"block-sparse, {self.block_size}")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)) + "  " + row[4]
            for row in rows
        ]
        share = sum(m.numel for m in self.modules if m.taken) / max(self.total, 1)
        return "\n".join(
            [*lines, f"{len(self.taken)} modules with {share:.1%} of {self.total:,} parameters"]
        )


def sparsify(
    model: nn.Module,
    block_size: int = 64,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> SparsifyReport:
    """Makes every eligible Linear and Conv1d of `model` block-sparse, in place; no mask is set yet.

    Only classes change: parameters, hooks, names and references to modules stay. Modules that are
    block-sparse already with this block size stay as they are.

    Args:
        model: any module; it may be a Linear or Conv1d itself.
        block_size: both dimensions of a weight must divide by it.
        include, exclude: shell patterns of qualified module names; an `exclude` without wildcards
            matches any name that contains it.

    Raises:
        ValueError: nothing is eligible (with the reasons), or a layer is block-sparse with another
            block size.
    """
    check_block_size(block_size)
    for what, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(
                f"{what}: expected a sequence of patterns, got the string {patterns!r}"
            )
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(f"sparsify: expected weights with values, run a batch first for {lazy[0]}")
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    reports, swap = [], []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Conv1d)) and not _is_transposed_linear(module):
            continue
        if type(module) in _PLAIN:
            if module.block_size != block_size:
                raise ValueError(
                    f"block_size: expected {module.block_size}, which {name} has, got {block_size}"
                )
            reports.append(ModuleReport(name, type(module).__name__, tuple(weight.shape)))
            continue
        reason = _why_not(name, module, block_size, include, exclude, uses)
        reports.append(ModuleReport(name, type(module).__name__, tuple(weight.shape), reason))
        if not reason:
            swap.append(module)
    report = SparsifyReport(tuple(reports), block_size, sum(p.numel() for p in model.parameters()))
    if not report.taken:
        reasons = "\n".join(f"  {m.name or '(the model)'}: {m.reason}" for m in reports)
        raise ValueError(
            "sparsify: expected at least one eligible Linear or Conv1d, got none:\n"
            + (reasons or "  (no such layer)")
        )
    for module in swap:
        module.__class__ = _SPARSE[type(module)]
        module._init_blocks(block_size)
    return report


def densify(model: nn.Module) -> nn.Module:
    """Turns every block-sparse layer back into its plain class, in place; pruned weights stay zero.

    Returns:
        `model`.
    """
    for module in model.modules():
        if type(module) in _PLAIN:
            module.set_block_mask(None)
            del module.block_size
            module.__dict__.pop("_layout", None)
            module.__class__ = _PLAIN[type(module)]
    return model


def _why_not(name, module, block_size, include, exclude, uses) -> str:
    """Why a module cannot be block-sparse; empty when it can."""
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return "not included"
    if any(word in name or fnmatch.fnmatchcase(name, word) for word in exclude):
        return "excluded"
    if "weight" not in module._parameters:
        return "its weight is computed (weight norm or another parametrization)"
    if "forward" in module.__dict__:
        return "its forward is replaced"
    if type(module) not in _SPARSE:
        return f"class {type(module).__name__} has its own ways with the weight"
    if uses[id(module.weight)] > 1:
        return "its weight is tied to another module's"
    if isinstance(module, nn.Conv1d):
        if module.groups != 1:
            return f"groups {module.groups}"
        if module.stride != (1,):
            return f"stride {module.stride[0]}"
    n, c = module.weight.shape[:2]
    if n % block_size or c % block_size or 0 in module.weight.shape:
        return f"{n} x {c} does not divide by {block_size}"
    return ""


def _is_transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's Conv1D: a linear layer whose weight is `[in, out]`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
