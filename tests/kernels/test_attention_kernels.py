# SPDX-License-Identifier: Apache-2.0
"""Attention with hidden keys and dropout, and its gradients, against its formula in float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from conftest import INTERPRETED
from torch import Tensor

from sniper.ops.backends.cpu import attention as cpu
from sniper.ops.backends.triton import attention as triton

operations = importlib.import_module("sniper.ops.attention")  # the function has its name

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
SEED = 987654321012345
# Batch, heads, queries, keys, channels: two pieces, several tiles with ends in each, of which one
# has a single key; one piece; two pieces in fewer queries than a tile; a piece wider than what is
# left, and few keys.
SHAPES = [
    ((2, 2, 70, 98, 192), 0.2, True),
    ((1, 3, 130, 64, 64), 0.0, False),
    ((2, 1, 33, 100, 48), 0.0, True),
    ((2, 2, 5, 3, 112), 0.3, False),
]


def tensors(shape: tuple[int, ...], device: str, dtype=torch.float16) -> list[Tensor]:
    """q, k, v and dy; k and v are columns of one tensor."""
    batch, heads, queries, keys, channels = shape
    q, dy = (torch.randn(batch, queries, heads * channels).to(dtype) for _ in range(2))
    packed = torch.randn(batch, keys, 2 * heads * channels).to(dtype).to(device)
    return [q.to(device), *packed.chunk(2, 2), dy.to(device)]


def masks(shape: tuple[int, ...]) -> Tensor:
    """The first sequence hides its end, the others some keys in between."""
    keys = torch.rand(shape[0], shape[3]) < 0.7
    keys[0] = torch.arange(shape[3]) < (shape[3] + 1) // 2
    return keys


def exact(q: Tensor, k: Tensor, v: Tensor, dy: Tensor, mask, heads: int, p: float) -> list[Tensor]:
    """The CPU's kernel, which has tests of its own, on the same values."""
    q, k, v, dy = (t.cpu().float() for t in (q, k, v, dy))
    y, normal = cpu.attention(q, k, v, mask, heads, p, SEED)
    return [y, *cpu.attention_backward(dy, q, k, v, mask, normal, p, SEED)]


def ours(q: Tensor, k: Tensor, v: Tensor, dy: Tensor, mask, heads: int, p: float) -> list[Tensor]:
    there = None if mask is None else mask.to(q.device)
    seed = torch.full((), SEED, device=q.device) if p else None
    y, normal = triton.attention(q, k, v, there, heads, p, seed)
    return [y, *triton.attention_backward(dy, q, k, v, there, y, normal, p, seed)]


def close(got: list[Tensor], wanted: list[Tensor]) -> None:
    largest = float(wanted[0].abs().max())
    for g, w in zip(got, wanted, strict=True):
        error = (g.cpu().float() - w).norm()
        # Nothing depends on q and k where one key counts: what is left of them is rounding.
        assert g.isfinite().all() and error <= 2e-3 * (w.norm() + largest)


@pytest.mark.parametrize("shape, p, masked", SHAPES)
def test_value_and_gradients(shape, p, masked, device, path):
    heads = shape[1]
    given = tensors(shape, device)
    mask = masks(shape) if masked else None
    got, wanted = ours(*given, mask, heads, p), exact(*given, mask, heads, p)
    close(got, wanted)
    # In the interpreter programs run one by one, and memory that nobody wrote is NaN.
    if not INTERPRETED or shape[2] < 10:
        again = ours(*given, mask, heads, p)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    if mask is not None:
        for gradient in got[2:]:
            assert not gradient.cpu()[~mask].any()


def test_the_same_elements_are_dropped_as_on_a_cpu(device):
    """Weights read back one by one: v is the identity."""
    q, k = (torch.randn(2, 64, 64, device=device).half() for _ in range(2))
    v = torch.eye(64, device=device).half().expand(2, 64, 64)
    mask = torch.arange(64) < torch.tensor([64, 41])[:, None]
    seed = torch.full((), SEED, device=device)
    y, _ = triton.attention(q, k, v, mask.to(device), 1, 0.5, seed)
    wanted, _ = cpu.attention(q.cpu().float(), k.cpu().float(), v.cpu().float(), mask, 1, 0.5, SEED)
    weights, _ = triton.attention(q, k, v, mask.to(device), 1, 0.0, None)
    told = weights.cpu() > 1e-6  # below, float16 makes a weight 0
    assert torch.equal((y.cpu() != 0)[told], (wanted != 0)[told])
    assert 0.3 < float((y.cpu() != 0)[told].float().mean()) < 0.7


def test_what_lies_in_hidden_keys_is_not_read(device):
    shape = (2, 1, 20, 70, 64)
    q, k, v, dy = tensors(shape, device)
    mask = masks(shape)
    clean = ours(q, k, v, dy, mask, 1, 0.3)
    hidden = ~mask[..., None].to(device)
    poisoned = [t.masked_fill(hidden, float("nan")) for t in (k, v)]
    for a, b in zip(ours(q, *poisoned, dy, mask, 1, 0.3), clean, strict=True):
        assert torch.equal(a, b)


def test_a_sequence_without_keys_is_zero_and_so_are_its_gradients(device):
    q, k, v, dy = tensors((2, 2, 7, 40, 32), device)
    mask = torch.tensor([True, False])[:, None].expand(2, 40)
    for t in ours(q, k, v, dy, mask, 2, 0.3):
        assert t[0].any() and not t[1].any() and t.isfinite().all()


def test_large_scores_do_not_overflow(device):
    q, k = torch.full((1, 3, 16), 200.0, device=device), torch.full((1, 5, 16), -200.0)
    k[:, 2] = 200.0
    v = torch.randn(1, 5, 16, device=device).half()
    y, normal = triton.attention(q.half(), k.half().to(device), v, None, 1, 0.0, None)
    assert torch.equal(y, v[:, 2:3].expand_as(y)) and normal.isfinite().all()


def test_sequences_take_turns_where_room_is_short(device, monkeypatch):
    given, mask = tensors((3, 2, 20, 70, 32), device), masks((3, 2, 20, 70, 32))
    at_once = ours(*given, mask, 2, 0.2)
    monkeypatch.setattr(triton, "MOST_PARTS", 1)
    for a, b in zip(ours(*given, mask, 2, 0.2), at_once, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(2, 2, 9, 9, 96), (2, 1, 33, 33, 48)])
def test_gradients_are_written_where_they_are_wanted(shape, device):
    """As columns of one tensor."""
    given, mask = tensors(shape, device), masks(shape)
    y, *apart = ours(*given, mask, shape[1], 0.2)
    whole = torch.full((*y.shape[:2], 3 * y.shape[2]), float("nan"), device=device, dtype=y.dtype)
    q, k, v, dy = given
    seed, there = torch.full((), SEED, device=device), mask.to(device)
    _, normal = triton.attention(q, k, v, there, shape[1], 0.2, seed)
    into = whole.chunk(3, -1)
    triton.attention_backward(dy, q, k, v, there, y, normal, 0.2, seed, into)
    for a, b in zip(into, apart, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="dk: expected rows a distance apart"):
        backwards = (
            into[0],
            into[1].flip(2).flip(1).expand(-1, -1, -1).mT.contiguous().mT,
            into[2],
        )
        triton.attention_backward(dy, q, k, v, there, y, normal, 0.2, seed, backwards)


def test_gradients_come_through_the_operation(device, monkeypatch):
    """As the model calls it: heads split, the gradient of a sum with strides of 0."""
    monkeypatch.setattr(operations, "_on_cpu", lambda t: False)
    q, k, v, _ = tensors((2, 2, 9, 9, 16), device)
    mask = masks((2, 2, 9, 9, 16))
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    split = [t.unflatten(2, (2, -1)).transpose(1, 2) for t in leaves]
    y = operations.attention_of_heads(mask.to(device), *split, 0.0)
    wanted = exact(q, k, v, torch.ones_like(q), mask, 2, 0.0)
    got = torch.autograd.grad(y.sum(), leaves)
    close([y.detach().transpose(1, 2).flatten(2), *got], wanted)


def test_refused(device):
    q, k, v, dy = tensors((2, 2, 5, 7, 32), device)
    mask = torch.ones(2, 7, dtype=torch.bool, device=device)
    with pytest.raises(ValueError, match="q: expected heads of a multiple of 16 channels up"):
        triton.attention(q, k, v, None, 8, 0.0, None)
    with pytest.raises(ValueError, match="q: expected bfloat16 or float16, got torch.float32"):
        triton.attention(q.float(), k.float(), v.float(), None, 2, 0.0, None)
    with pytest.raises(ValueError, match=r"key_mask: expected shape \[2, 7\], got \[2, 5\]"):
        triton.attention(q, k, v, mask[:, :5], 2, 0.0, None)
    with pytest.raises(ValueError, match=r"v: expected shape \[2, 7, 64\], got \[2, 5, 64\]"):
        triton.attention(q, k, v[:, :5], None, 2, 0.0, None)
    with pytest.raises(ValueError, match=r"dropout: expected p in \[0, 1\), got 1"):
        triton.attention(q, k, v, mask, 2, 1.0, 0)
    y, normal = triton.attention(q, k, v, mask, 2, 0.0, None)
    with pytest.raises(ValueError, match=r"dy: expected shape \[2, 5, 64\], got \[2, 4, 64\]"):
        triton.attention_backward(dy[:, :4], q, k, v, mask, y, normal, 0.0, None)
