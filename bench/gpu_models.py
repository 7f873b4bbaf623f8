# SPDX-License-Identifier: Apache-2.0
"""The section of `gpu_suite.py` about somebody else's model; `dry` is a tiny run on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import bench_dropin as others
import common
import torch
from gpu_kernels import Row, device_of, wait
from torch import Tensor, nn

from sniper.ops.layout import weight_mask

SPARSITY = 0.8
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
DRY: dict[str, Any] = {"hidden_size": 32, "speech_decoder_postnet_layers": 1}
for _side in ("encoder", "decoder"):
    DRY |= {f"{_side}_layers": 1, f"{_side}_linear_units": 64}
for _value in ("duration", "pitch", "energy"):
    DRY |= {f"{_value}_predictor_layers": 1, f"{_value}_predictor_channels": 32}


def drop_in(dry: bool) -> Iterator[Row]:
    """Hugging Face's FastSpeech2Conformer with masks, launched kernel by kernel: its losses beside
    those of the dense model with the same masks on weights and gradients, its times beside the
    dense model's. Then the times of both through torch.compile, but in a dry run.
    """
    device, repeats = device_of(dry), 2 if dry else 9
    torch.manual_seed(0)
    config = others.FastSpeech2ConformerConfig(**(DRY if dry else {}))
    model = others.FastSpeech2ConformerModel(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # torch draws it in memory order
            module.p = 0.0
    batch = _batch(config, device, dry)
    for dtype in (torch.float32,) if dry else (torch.float32, torch.bfloat16):
        masked, report = others.sparse_copy(model, SPARSITY, 16 if dry else 64)
        models = {"sparse": masked, "masked": _masked_dense(model, masked, report.taken)}
        models["dense"] = copy.deepcopy(model)
        steps = {name: others.Step(m.to(device), batch) for name, m in models.items()}
        row: Row = {"dtype": str(dtype).removeprefix("torch."), "layers": len(report.taken)}
        with torch.autocast(device.type, dtype, dtype != torch.float32):
            row["losses differ by"] = _difference(steps, TOLERANCES[dtype])
            del steps["masked"]
            yield row | _in_turn(steps, device, repeats)
            if dtype == torch.bfloat16:
                yield {"mode": "reduce-overhead"} | _compiled(steps, device, repeats)


def _batch(config: Any, device: torch.device, dry: bool) -> dict[str, Tensor]:
    batch = others.make_batch(config)
    if dry:
        frames = 8 * others.FRAMES_A_TOKEN
        lengths = {"spectrogram_labels": frames}
        batch = {name: t[:1, : lengths.get(name, 8)] for name, t in batch.items()}
    return {name: t.to(device) for name, t in batch.items()}


def _masked_dense(model: nn.Module, masked: nn.Module, names: tuple[str, ...]) -> Any:
    """A dense copy with the masks of `masked` on these modules' weights and their gradients."""
    dense = copy.deepcopy(model)
    for name in names:
        layer = cast(Any, masked.get_submodule(name))
        weight = cast(nn.Parameter, dense.get_submodule(name).weight)
        mask = weight_mask(layer.layout, weight.dim())
        weight.data *= mask
        weight.register_hook(lambda grad, mask=mask: grad * mask.to(grad.device))
    return dense


def _difference(steps: dict[str, others.Step], tolerance: float) -> float:
    """The largest of some updates' losses, as a share."""
    pairs = [(steps["sparse"](), steps["masked"]()) for _ in range(6)]
    largest = max(abs(a - b) / abs(b) for a, b in pairs)
    if not largest <= tolerance:
        raise SystemExit(f"losses with masks, and dense of masked weights: {pairs}")
    return largest


def _in_turn(steps: dict[str, others.Step], device: torch.device, repeats: int) -> Row:
    """Milliseconds of a step of each side."""
    for step in [*steps.values()] * 2:  # choices, moments, what is compiled
        step()
    calls = cast(dict[str, Callable[[], object]], steps)
    times = common.time_side_by_side(calls, repeats, lambda: wait(device))
    return {f"{name} ms": common.percentiles(each)[1] for name, each in times.items()}


def _compiled(steps: dict[str, others.Step], device: torch.device, repeats: int) -> Row:
    try:
        for step in steps.values():
            step.model.compile(mode="reduce-overhead")
        return _in_turn(steps, device, repeats)
    except Exception as error:  # nobody promised that a compiler takes this model
        return {"cannot": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
