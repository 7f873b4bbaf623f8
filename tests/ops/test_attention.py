# SPDX-License-Identifier: Apache-2.0
"""Attention against its formula written out, with the dropout mask read back from the generator."""

import math

import pytest
import torch
from torch import Tensor

from sniper.ops.attention import _attention, attention
from sniper.ops.backends.cpu import elementwise as cpu_elementwise
from sniper.ops.backends.cpu.softmax import softmax_dropout_


def written_out(q, k, v, heads, key_mask, p, seed) -> Tensor:
    """The formula in the inputs' dtype, with the same zeroes."""

    def split(t: Tensor) -> Tensor:
        return t.unflatten(2, (heads, -1)).permute(2, 0, 1, 3)  # [H, B, T, C / H]

    scores = split(q) @ split(k).transpose(2, 3) / math.sqrt(q.shape[2] // heads)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[None, :, None], -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    keep = cpu_elementwise.dropout(torch.ones(weights.shape), p, seed).to(q.dtype)
    return (weights * keep @ split(v)).permute(1, 2, 0, 3).flatten(2)


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [(1, 1), (7, 7), (33, 33), (5, 70), (64, 64)])
@pytest.mark.parametrize("p", [0.2, 0.9])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients(heads, lengths, p, masked):
    queries, keys = lengths
    leaves = [torch.randn(3, t, 16) for t in (queries, keys, keys)]
    mask = None
    if masked:
        mask = torch.arange(keys) < torch.tensor([keys, (keys + 1) // 2, 1])[:, None]
    seed = torch.tensor(1234)
    ours = [t.clone().requires_grad_() for t in leaves]
    y, _ = _attention(*ours, mask, heads, p, seed)
    exact = [t.double().requires_grad_() for t in leaves]
    wanted = written_out(*exact, heads, mask, p, 1234)
    assert relative(y, wanted) < 1e-5
    dy = torch.randn(3, 16, queries).transpose(1, 2)  # not contiguous
    y.backward(dy)
    wanted.backward(dy.double())
    for got, want in zip(ours, exact, strict=True):
        assert relative(got.grad, want.grad) < 1e-5 or want.grad.norm() < 1e-5


def test_strided_inputs_are_read_where_they_lie():
    packed = torch.randn(2, 9, 48)
    q, k, v = packed.split(16, dim=2)
    seed = torch.tensor(5)
    y, _ = _attention(q, k, v, None, 2, 0.5, seed)
    again, _ = _attention(q.contiguous(), k.contiguous(), v.contiguous(), None, 2, 0.5, seed)
    assert torch.equal(y, again)


def test_a_row_without_keys_is_zero_not_nan():
    q = torch.randn(2, 4, 8)
    mask = torch.tensor([[True] * 4, [False] * 4])
    y, _ = _attention(q, q, q, mask, 1, 0.3, torch.tensor(0))
    assert torch.isfinite(y).all() and (y[1] == 0).all() and (y[0] != 0).any()


def test_large_scores_do_not_overflow():
    scores = torch.tensor([[[[1e30, 1e30, -1e30], [0.0, -200.0, -88.0]]]])
    softmax_dropout_(scores, None, 1.0, 0.0, 0)
    assert torch.allclose(scores[0, 0], torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 540])
def test_softmax_without_dropout_is_torch_softmax(columns):
    scores = torch.randn(2, 3, 4, columns) * 5
    wanted = (scores.double() * 0.37).softmax(-1)
    dropped = softmax_dropout_(scores, None, 0.37, 0.0, 0)
    assert relative(scores, wanted) < 1e-6 and torch.equal(dropped, scores)


def test_without_dropout_it_is_torch_attention_and_follows_the_seed_with_it():
    q, k, v = (torch.randn(2, 6, 8) for _ in range(3))
    plain = written_out(*(t.double() for t in (q, k, v)), 2, None, 0.0, 0)
    assert relative(attention(q, k, v, 2), plain) < 1e-5
    torch.manual_seed(3)
    first = attention(q, k, v, 2, None, 0.5)
    torch.manual_seed(3)
    assert torch.equal(attention(q, k, v, 2, None, 0.5), first)
    assert not torch.equal(attention(q, k, v, 2, None, 0.5), first)


def test_opcheck():
    q = torch.randn(2, 6, 8, requires_grad=True)
    mask = torch.ones(2, 6, dtype=torch.bool)
    args = (q, q.detach().clone(), q.detach().clone(), mask, 2, 0.25, torch.tensor(3))
    torch.library.opcheck(torch.ops.sniper.attention.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: expected a divisor of 8, got 3"),
        ({"dropout_p": 1.0}, r"dropout_p: expected p in \[0, 1\), got 1.0"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.bool)}, "key_mask: expected bool"),
        ({"key_mask": torch.ones(2, 6)}, "key_mask: expected bool"),
        ({"k": torch.randn(2, 6, 4)}, "expected q, k, v"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {n: torch.randn(2, 6, 8) for n in "qkv"} | {"heads": 2}
    with pytest.raises(ValueError, match=message):
        attention(**(good | change))
