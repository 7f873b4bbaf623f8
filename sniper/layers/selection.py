# SPDX-License-Identifier: Apache-2.0
"""Which modules and parameters a user's patterns and the types of modules leave out."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from sniper.ops.sharded import check_whole

# What SNIPER's authors leave out by name. A model without such names is no mistake.
EXCLUDE = ("norm", "embed")

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm in all dimensions
)
_WILDCARDS = "*?["


def check_module(model: object) -> nn.Module:
    """`model`, or a ValueError where it is no `nn.Module`."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def check_whole_parameters(model: nn.Module) -> None:
    """Refuses a model of whose parameters each process holds parts.

    Raises:
        ValueError: names one, how it is sharded, and what to use instead.
    """
    for name, p in model.named_parameters():
        check_whole(f"model: {name}", p)


def check_patterns(what: str, patterns: object) -> tuple[str, ...]:
    """The patterns as a tuple, or a ValueError that names `what`."""
    if isinstance(patterns, str):
        raise ValueError(f"{what}: expected a sequence of patterns, got the string {patterns!r}")
    if not isinstance(patterns, Iterable):
        got = type(patterns).__name__
        raise ValueError(f"{what}: expected a sequence of patterns (strings), got {got}")
    result = tuple(patterns)
    for pattern in result:
        if not isinstance(pattern, str):
            raise ValueError(f"{what}: expected patterns that are strings, got {pattern!r}")
    return result


def matches(pattern: str, name: str) -> bool:
    """Whether a shell pattern fits the whole name; without wildcards, whether the name has it in
    it.
    """
    if any(c in pattern for c in _WILDCARDS):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern in name


def excluded_by(patterns: Iterable[str], names: Collection[str]) -> str | None:
    """The first pattern that matches one of the names."""
    return next((p for p in patterns if any(matches(p, name) for name in names)), None)


def names_of(parameter: str) -> tuple[str, str]:
    """What a pattern may match of a parameter: its qualified name and that of its module. So one
    pattern leaves out the same layers whether blocks or single weights are masked.
    """
    return parameter, parameter.rpartition(".")[0]


def unmatched(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """The patterns that match no parameter of the model and no module that holds one; what is
    excluded by default is never among them.
    """
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names = {name for parameter in parameters for name in names_of(parameter)}
    return [p for p in patterns if p not in EXCLUDE and excluded_by([p], names) is None]


def check_matched(what: str, model: nn.Module, patterns: Sequence[str]) -> None:
    """Raises a ValueError for patterns that match nothing: a misspelt one would change what is
    trained, in silence.
    """
    lost = unmatched(model, patterns)
    if not lost:
        return
    modules = [name for name, _ in model.named_modules() if name]
    hint = "patterns are matched against qualified names, such as those of model.named_parameters()"
    if any(matches(lost[0], name) for name in modules):
        hint = f"it matches only modules that hold others; {lost[0]}.* matches what is in them"
    raise ValueError(
        f"{what}: expected patterns that match a parameter or its module, "
        f"got {', '.join(map(repr, lost))}: {hint}"
    )


def kind_left_out(module: nn.Module) -> str:
    """'normalisation layer' or 'embedding' where the module is one by its type, whatever its name;
    otherwise ''.

    Torch's classes and those derived from them, and classes whose name ends in `Norm`, such as
    Hugging Face's `LlamaRMSNorm`.
    """
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    named = any(c.__name__.endswith("Norm") for c in type(module).__mro__)
    return "normalisation layer" if named or isinstance(module, _NORMS) else ""


def weight_norm_parts(model: nn.Module) -> set[int]:
    """Ids of the parameters of which weight norm, in either form of torch's, makes a weight: with a
    whole row pruned it would divide by 0.
    """
    found: list[nn.Parameter | None] = []
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            if any(type(each).__name__ == "_WeightNorm" for each in module):
                found += module._parameters.values()
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found += (module._parameters.get(f"{hook.name}_{part}") for part in "gv")
    return {id(p) for p in found if p is not None}


def left_out_by_type(model: nn.Module) -> dict[int, str]:
    """By id, the kind of what holds a parameter, for those that normalisation layers and embeddings
    hold themselves, also where another module shares them.
    """
    return {
        id(p): kind
        for module in model.modules()
        if (kind := kind_left_out(module))
        for p in module._parameters.values()
        if p is not None
    }
