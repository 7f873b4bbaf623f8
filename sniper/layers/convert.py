# SPDX-License-Identifier: Apache-2.0
"""Plain layers into block-sparse ones and back, in place."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sniper.layers.conv1d import BlockSparseConv1d
from sniper.layers.depthwise import DepthwiseConv1d
from sniper.layers.dropout import Dropout
from sniper.layers.linear import BlockSparseLinear
from sniper.layers.masked import BlockMaskedLayer, check_block_size
from sniper.layers.selection import (
    check_matched,
    check_module,
    check_patterns,
    check_whole_parameters,
    excluded_by,
    kind_left_out,
)
from sniper.layers.zeros import release

Model = TypeVar("Model", bound=nn.Module)
_SPARSE = {nn.Linear: BlockSparseLinear, nn.Conv1d: BlockSparseConv1d}
_PLAIN = {sparse: plain for plain, sparse in _SPARSE.items()}
# What else may be swapped in, without masks: subclasses of what they are swapped for.
_FASTER = (Dropout, DepthwiseConv1d)
# Other people's attention and ours for it, by name: nobody has to have these packages.
_ESPNET = "espnet.nets.pytorch_backend.transformer.attention"
_ATTENTIONS = {
    (
        "transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer",
        "FastSpeech2ConformerAttention",
    ): ("sniper.layers.attention_huggingface", "RelativeAttention"),
    (_ESPNET, "MultiHeadedAttention"): ("sniper.layers.attention_espnet", "MultiHeadedAttention"),
    (_ESPNET, "RelPositionMultiHeadedAttention"): (
        "sniper.layers.attention_espnet",
        "RelPositionMultiHeadedAttention",
    ),
}


@dataclass(frozen=True)
class ModuleReport:
    """What became of one module that holds a weight matrix.

    Attributes:
        name: qualified module name.
        kind: its class before.
        shapes: of the matrices it holds: one, or several in an LSTM or `nn.MultiheadAttention`.
        reason: why it was left as it is; empty when it was taken.
        multiplied: whether it multiplies with them; an embedding only looks rows up.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    reason: str = ""
    multiplied: bool = True

    @property
    def taken(self) -> bool:
        """Whether the module is block-sparse now."""
        return not self.reason

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its first matrix."""
        return self.shapes[0]

    @property
    def numel(self) -> int:
        """Weights in its matrices, biases not counted."""
        return sum(map(math.prod, self.shapes))

    @property
    def flops(self) -> int:
        """Floating-point operations of one dense forward call at one position, bias not counted: a
        token for a Linear or an LSTM, an output frame for a Conv1d, an input frame for a transposed
        one.
        """
        # Each weight multiplies and adds once there, groups and taps too.
        return 2 * self.numel if self.multiplied else 0


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify` did, module by module; `print` shows it as a table.

    FLOPs are those of one position (a token for a Linear, a frame for a convolution), one call a
    module, and their shares count from all listed modules: the model's forward, which the report
    has not seen, says how many positions there are. A parameter of a class that is not known counts
    as if it were multiplied with.

    Attributes:
        modules: every module of the model that holds a matrix itself: Linear, Conv, Hugging Face's
            Conv1D, `nn.MultiheadAttention`, LSTM, Bilinear, embeddings, and classes of the user's
            with parameters of two or more dimensions.
        block_size: edge of a block.
        total: all parameters of the model.
        dropouts: `nn.Dropout` modules that are `sniper.layers.Dropout` now.
        depthwise: depthwise `nn.Conv1d` modules that our kernel computes now.
        attentions: attention modules of other people that our kernel computes now.
    """

    modules: tuple[ModuleReport, ...]
    block_size: int
    total: int
    dropouts: int = 0
    depthwise: int = 0
    attentions: int = 0

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of the modules that are block-sparse now."""
        return tuple(m.name for m in self.modules if m.taken)

    @property
    def parameter_share(self) -> float:
        """Weights that are block-sparse now, of all parameters of the model, in [0, 1]."""
        return sum(m.numel for m in self.modules if m.taken) / max(self.total, 1)

    @property
    def flop_share(self) -> float:
        """FLOPs of the modules that are block-sparse now, of all listed ones, in [0, 1]."""
        return sum(m.flops for m in self.modules if m.taken) / max(self._flops, 1)

    @property
    def _flops(self) -> int:
        return sum(m.flops for m in self.modules)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("module", "class", "weight", "parameters", "FLOPs", "")]
        for m in self.modules:
            shares = (m.numel / max(self.total, 1), m.flops / max(self._flops, 1))
            note = m.reason or f"block-sparse, {self.block_size}"
            shape = "x".join(map(str, m.shape))
            if len(m.shapes) > 1:
                shape += f" and {len(m.shapes) - 1} more"
            rows.append((m.name, m.kind, shape, *(f"{share:.1%}" for share in shares), note))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]).rstrip()
            for row in rows
        ]
        summary = (
            f"{len(self.taken)} modules with {self.parameter_share:.1%} of {self.total:,} "
            f"parameters and {self.flop_share:.1%} of the FLOPs\n"
            "(FLOPs: of the modules listed, per token of a Linear and per frame of a convolution)"
        )
        if self.dropouts:
            summary += f"\n{self.dropouts} dropouts draw from a counter"
        if self.depthwise:
            summary += f"\n{self.depthwise} depthwise convolutions by a kernel of their own"
        if self.attentions:
            summary += f"\n{self.attentions} attentions by a kernel of their own"
        return "\n".join([*lines, summary])


def sparsify(
    model: nn.Module,
    block_size: int = 64,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    fast_dropout: bool = False,
    fast_depthwise: bool = False,
    fast_attention: bool = False,
) -> SparsifyReport:
    """Makes every eligible Linear and Conv1d of `model` block-sparse, in place; no mask is set yet.

    Only classes change: parameters, hooks, names and references to modules stay. Modules that are
    block-sparse already with this block size stay as they are.

    Args:
        model: any module; it may be a Linear or Conv1d itself.
        block_size: both dimensions of a weight must divide by it.
        include: shell patterns of qualified module names; only modules that match one are taken.
        exclude: shell patterns of qualified names of modules or of their weights; a pattern without
            wildcards matches any name that contains it. The report says by which one.
        fast_dropout: also make every `nn.Dropout` of the model a `sniper.layers.Dropout`, which
            draws other random numbers at the same rate. On a CPU torch draws them on one thread;
            once the layers are sparse that may be a quarter of a step.
        fast_depthwise: also have every depthwise `nn.Conv1d` of the model computed by our kernel,
            for float32 on a CPU: the same function, of which torch's kernels take a tenth of a
            Conformer's step.
        fast_attention: also have the attention of Hugging Face's FastSpeech2Conformer and of
            ESPnet's transformers and Conformers computed by our kernel, for float32 on a CPU: the
            same function, with dropout's random numbers as `fast_dropout` draws them, and without
            weights to look at.

    Returns:
        What was taken, and why the rest was not.

    Raises:
        ValueError: nothing is eligible (with the reasons), a pattern that matches nothing, or a
            layer that is block-sparse with another block size.
    """
    check_whole_parameters(check_module(model))
    check_block_size(block_size)
    include, exclude = check_patterns("include", include), check_patterns("exclude", exclude)
    switches = {
        "fast_dropout": fast_dropout,
        "fast_depthwise": fast_depthwise,
        "fast_attention": fast_attention,
    }
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected a bool, got {value!r}")
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            "sparsify: expected weights with values, got lazy ones, run a batch first for "
            f"{lazy[0]}"
        )
    if include != ("*",):
        check_matched("include", model, include)
    check_matched("exclude", model, exclude)
    # _parameters, not parameters(): the latter names a tied weight once and hides the second use.
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    reports, swap = [], []
    for name, module in model.named_modules():
        shapes = tuple(tuple(matrix.shape) for matrix in _matrices(module))
        if not shapes:
            continue
        kind = type(module).__name__
        if type(module) in _PLAIN:
            if module.block_size != block_size:
                raise ValueError(
                    f"block_size: expected {module.block_size}, which {name} has, got {block_size}"
                )
            reports.append(ModuleReport(name, kind, shapes))
            continue
        reason = _why_not(name, module, block_size, include, exclude, uses)
        multiplied = not kind_left_out(module)
        reports.append(ModuleReport(name, kind, shapes, reason, multiplied))
        if not reason:
            swap.append(module)
    # The exact class: a subclass may override what dropout does.
    dropouts = [m for m in model.modules() if type(m) is nn.Dropout] if fast_dropout else []
    convolutions = [m for m in model.modules() if type(m) is nn.Conv1d] if fast_depthwise else []
    depthwise = [m for m in convolutions if DepthwiseConv1d.takes(m)]
    found = [(m, _attention_for(type(m))) for m in model.modules()] if fast_attention else []
    attentions = [(m, kind) for m, kind in found if kind]
    faster = [(m, Dropout) for m in dropouts] + [(m, DepthwiseConv1d) for m in depthwise]
    faster += attentions
    total = sum(p.numel() for p in model.parameters())
    counts = len(dropouts), len(depthwise), len(attentions)
    report = SparsifyReport(tuple(reports), block_size, total, *counts)
    if not report.taken:
        reasons = "\n".join(f"  {m.name or '(the model)'}: {m.reason}" for m in reports)
        raise ValueError(
            "sparsify: expected at least one eligible Linear or Conv1d, got none:\n"
            + (reasons or "  (no such layer)")
        )
    # Only after everything was looked at: a refusal leaves every module as it was. The class is
    # swapped and the object stays, so that hooks, references and optimizers keep what they hold.
    for module in swap:
        module.__class__ = _SPARSE[type(module)]
        module._init_blocks(block_size)
    for module, kind in faster:
        module.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]
        module.__dict__["_was_plain"] = True
    _turn_off_fused_inference(model)
    return report


def densify(model: Model) -> Model:
    """Turns every block-sparse layer back into its plain class, in place; pruned weights stay zero.

    A layer whose class was changed since, as by a parametrization (spectral or weight norm), loses
    its mask and keeps its class, with a warning.

    Args:
        model: as `sparsify` left it; a plain one stays as it is.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is no module.
    """
    for name, module in check_module(model).named_modules():
        if isinstance(module, BlockMaskedLayer) and type(module) not in _PLAIN:
            if module.layout is not None:
                module.set_block_mask(None)
                release(module)
                warnings.warn(
                    f"densify: {name or 'the model'} is dense now and stays a "
                    f"{type(module).__name__}: to get its plain class back remove its "
                    "parametrization first",
                    stacklevel=2,
                )
        elif isinstance(module, BlockMaskedLayer):
            module.set_block_mask(None)
            release(module)
            del module.block_size
            module.__dict__.pop("_layout", None)
            module.__class__ = _PLAIN[type(module)]
        elif _is_faster(type(module)) and module.__dict__.pop("_was_plain", False):
            module.__class__ = type(module).__bases__[0]
        # Also on modules that hold no layer themselves: torch's encoders remember here how they
        # ran.
        for attribute, value in module.__dict__.pop("_before_sparsify", {}).items():
            setattr(module, attribute, value)
    return model


def _attention_for(kind: type) -> type | None:
    """Ours for other people's class of attention, unless their version is called otherwise."""
    found = _ATTENTIONS.get((kind.__module__, kind.__qualname__))
    if not found:
        return None
    ours = getattr(importlib.import_module(found[0]), found[1])
    known, given = (list(inspect.signature(c.forward).parameters) for c in (ours, kind))
    if known[: len(given)] == given:  # an earlier version may lack the last ones
        return ours
    warnings.warn(
        f"sparsify: fast_attention: expected {kind.__qualname__}.forward({', '.join(known)}), this "
        f"version has ({', '.join(given)}): it is left as it is",
        stacklevel=3,
    )
    return None


def _is_faster(kind: type) -> bool:
    return kind in _FASTER or (kind.__module__, kind.__qualname__) in _ATTENTIONS.values()


# By what each of torch's own modules decides whether it may run fused.
_FUSED_INFERENCE = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


def _turn_off_fused_inference(model: nn.Module) -> None:
    """Torch's fused encoder multiplies with the weights itself and never calls our layers."""
    for module in model.modules():
        for kind, (name, off) in _FUSED_INFERENCE.items():
            if isinstance(module, kind) and any(
                isinstance(m, BlockMaskedLayer) for m in module.modules()
            ):
                module.__dict__.setdefault("_before_sparsify", {name: getattr(module, name, off)})
                setattr(module, name, off)


def _why_not(
    name: str,
    module: nn.Module,
    block_size: int,
    include: Sequence[str],
    exclude: Sequence[str],
    uses: Counter[int],
) -> str:
    """Why a module cannot be block-sparse; empty when it can."""
    kind = type(module).__name__
    if left_out := kind_left_out(module):
        return f"left out by its type: {left_out}"
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return "not included"
    pattern = excluded_by(exclude, (name, f"{name}.weight" if name else "weight"))
    if pattern is not None:  # an empty one fits every name
        return f"excluded by {pattern!r}"
    if _is_transposed_linear(module):
        return "its weight is transposed, [in, out]"
    # Its functional reads in_proj_weight itself; out_proj is read the same way and never called.
    if isinstance(module, nn.MultiheadAttention):
        return "its projections are no Linear modules"
    if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        ours = type(module).__module__.startswith("torch.nn.modules.")
        return f"class {kind} is not supported" if ours else _OWN_WAYS.format(kind)
    if "weight" not in module._parameters:
        return "its weight is computed (weight norm or another parametrization)"
    # A wrapper (offloading, a profiler) put its own function there and would never reach ours.
    if "forward" in module.__dict__:
        return "its forward is replaced"
    if isinstance(module, nn.modules.conv._ConvNd) and not isinstance(module, nn.Conv1d):
        return f"class {kind} is not supported"
    if type(module) not in _SPARSE and type(module) not in _FASTER:
        return _OWN_WAYS.format(kind)
    if uses[id(module.weight)] > 1:
        return "its weight is tied to another module's"
    if isinstance(module, nn.Conv1d):
        if module.groups != 1:
            return f"groups {module.groups}"
        if module.stride != (1,):
            return f"stride {module.stride[0]}"
    if module.weight.is_complex():
        return "complex weights"
    n, c = module.weight.shape[:2]
    if n % block_size or c % block_size or 0 in module.weight.shape:
        return f"{n} x {c} does not divide by {block_size}"
    return ""


_OWN_WAYS = "class {} has its own ways with the weight"


def _matrices(module: nn.Module) -> list[Tensor]:
    """The weights of two or more dimensions that a module holds itself."""
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or _is_transposed_linear(module):
        return [cast(Tensor, module.weight)]  # also where it is computed
    if isinstance(module, parametrize.ParametrizationList):
        return []  # counted as what its owner computes of it
    # A parametrized weight is no parameter any more but is multiplied with all the same.
    held = [p for p in module._parameters.values() if p is not None]
    if parametrize.is_parametrized(module):
        computed = cast(nn.ModuleDict, module.parametrizations)
        held += [getattr(module, name) for name in computed]
    return [p for p in held if p.dim() >= 2]


def _is_transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's Conv1D: a linear layer whose weight is `[in, out]`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
