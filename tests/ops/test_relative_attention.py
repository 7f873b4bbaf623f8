# SPDX-License-Identifier: Apache-2.0
"""Attention over relative positions against its formula written out position by position, with the
dropout mask read back from the generator.
"""

import math

import pytest
import torch
from torch import Tensor

from sniper.ops.backends.cpu import attention as cpu_attention
from sniper.ops.backends.cpu import elementwise as cpu_elementwise
from sniper.ops.relative_attention import _relative_attention, relative_attention


def written_out(q, k, v, position_q, positions, heads, key_mask, p, seed) -> Tensor:
    """The formula in the inputs' dtype, by the index of each query and key."""
    length = q.shape[1]

    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1)).movedim(-2, 0)  # [H, (B,) T, C / H]

    at = torch.arange(length)
    place = split(positions)[:, length - 1 - at[:, None] + at]  # [H, T, T, C / H]
    scores = split(q) @ split(k).transpose(2, 3)
    scores = scores + torch.einsum("hbtc,htuc->hbtu", split(position_q), place)
    scores = scores / math.sqrt(q.shape[2] // heads)
    if key_mask is None:
        keep = cpu_elementwise.dropout(torch.ones(scores.shape), p, seed)
    else:
        scores = scores.masked_fill(~key_mask[None, :, None], -math.inf)
        # Dropout counts the keys that count.
        drawn = cpu_elementwise.dropout(torch.ones(scores.shape), p, seed)
        keep = torch.ones(scores.shape)
        for b, mask in enumerate(key_mask):
            keep[:, b, :, mask] = drawn[:, b, :, : int(mask.sum())]
    weights = scores.softmax(-1).nan_to_num(0.0) * keep.to(q.dtype)
    return (weights @ split(v)).permute(1, 2, 0, 3).flatten(2)


def operands(batch: int, length: int, width: int) -> list[Tensor]:
    given = [torch.randn(batch, length, width) for _ in range(4)]
    return [*given, torch.randn(2 * length - 1, width)]


def mask_of(kind: str | None, batch: int, length: int) -> Tensor | None:
    """Padding, with a sequence that has no key, or holes."""
    if kind == "padding":
        kept = torch.tensor([length, (length + 1) // 2, 0]).repeat(batch)[:batch, None]
        return torch.arange(length) < kept
    return torch.rand(batch, length) < 0.6 if kind == "holes" else None


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


@pytest.mark.usefixtures("isa", "nan_filled_empty")
# More than one tile of queries and strip of places; channels that fill no vector, one and several
# strips of them; one query; chunks of queries; more sequences than groups that add to one sum.
@pytest.mark.parametrize(
    ("batch", "heads", "length", "channels"),
    [(3, 2, 100, 20), (1, 1, 200, 192), (1, 3, 1, 7), (9, 2, 13, 80), (20, 1, 9, 5)],
)
@pytest.mark.parametrize(
    ("p", "mask"), [(0.0, None), (0.3, None), (0.3, "padding"), (0.3, "holes")]
)
def test_value_and_gradients(batch, heads, length, channels, p, mask):
    given = operands(batch, length, heads * channels)
    key_mask = mask_of(mask, batch, length)
    ours = [t.clone().requires_grad_() for t in given]
    exact = [t.double().requires_grad_() for t in given]
    y, _ = _relative_attention(*ours, key_mask, heads, p, torch.tensor(7))
    wanted = written_out(*exact, heads, key_mask, p, 7)
    dy = torch.randn(batch, heads * channels, length).transpose(1, 2)  # not contiguous
    y.backward(dy)
    wanted.backward(dy.double())
    assert relative(y, wanted) < 2e-6 or wanted.norm() < 1e-5
    for got, want in zip(ours, exact, strict=True):
        # With one key nothing depends on queries and places.
        assert relative(got.grad, want.grad) < 2e-6 or (want.grad.norm() + got.grad.norm()) < 1e-5


def test_torchs_functions_compute_the_same():
    given = operands(3, 17, 24)
    mask = mask_of("padding", 3, 17)
    wanted = relative_attention(*given, 2, mask)
    got = relative_attention(*[t.double() for t in given], 2, mask)
    assert got.dtype == torch.float64 and relative(wanted, got) < 1e-6
    exact = written_out(*[t.double() for t in given], 2, mask, 0.0, 0)
    torch.testing.assert_close(got, exact)


def test_bits_do_not_depend_on_the_number_of_threads():
    given = [t.requires_grad_() for t in operands(5, 150, 48)]
    dy = torch.randn(5, 150, 48)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y, _ = _relative_attention(*given, None, 2, 0.2, torch.tensor(3))
            found.append((y, *torch.autograd.grad(y, given, dy)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_columns_of_one_tensor_are_read_where_they_lie():
    together = torch.randn(2, 9, 64)
    parts = together.split(16, dim=2)
    positions = torch.randn(17, 32)[:, 16:]
    got = relative_attention(*parts, positions, 2)
    wanted = relative_attention(*[t.contiguous() for t in parts], positions.contiguous(), 2)
    assert torch.equal(got, wanted)


def test_seeds_come_from_torchs_generator():
    given = operands(2, 30, 16)
    torch.manual_seed(4)
    first = [relative_attention(*given, 2, dropout_p=0.5) for _ in range(2)]
    torch.manual_seed(4)
    again = [relative_attention(*given, 2, dropout_p=0.5) for _ in range(2)]
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_second_derivatives():
    given = [t.requires_grad_() for t in operands(2, 6, 8)]

    def twice(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        y = relative_attention(*tensors, 2)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    exact = [t.detach().double().requires_grad_() for t in given]
    for got, wanted in zip(twice(given), twice(exact), strict=True):
        assert relative(got, wanted) < 1e-5
    y = relative_attention(*given, 2, dropout_p=0.5)
    with pytest.raises(RuntimeError, match="expected one derivative, got a second one"):
        torch.autograd.grad(y.sum(), given, create_graph=True)


def test_compiled():
    given = operands(2, 11, 16)
    compiled = torch.compile(relative_attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given, 2), relative_attention(*given, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": torch.ones(2, 4, 8)},
            r"expected four times \[B, T, C\], got .* k \[2, 4",
        ),
        ({"positions": torch.ones(5, 8)}, r"expected positions \[2 T - 1, C\], got .*\[5, 8\]"),
        ({"heads": 3}, "heads: expected a divisor of 8, got 3"),
        ({"key_mask": torch.ones(2, 5)}, r"key_mask: expected bool \[2, 5\], got torch.float32"),
        ({"dropout_p": 1.0}, r"dropout_p: expected p in \[0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    names = ("q", "k", "v", "position_q", "positions")
    given = dict(zip(names, operands(2, 5, 8), strict=True)) | {"heads": 2}
    with pytest.raises(ValueError, match=message):
        relative_attention(**{**given, **change})


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("length", [640, 900])
def test_long_sequences_of_which_some_keys_count(length):
    torch.set_num_threads(2)
    given = operands(2, length, 96)
    mask = (torch.arange(length) < length - 16).expand(2, -1)
    ours = [t.clone().requires_grad_() for t in given]
    exact = [t.double().requires_grad_() for t in given]
    y = relative_attention(*ours, 1, mask)
    wanted = written_out(*exact, 1, mask, 0.0, 0)
    assert relative(y, wanted) < 1e-5
    dy = torch.randn(2, length, 96)
    y.backward(dy)
    wanted.backward(dy.double())
    for got, want in zip(ours, exact, strict=True):
        assert relative(got.grad, want.grad) < 1e-5


def test_no_position_at_all():
    q, k, v, position_q = (torch.randn(2, 0, 8, requires_grad=True) for _ in range(4))
    y = relative_attention(q, k, v, position_q, torch.randn(0, 8), 2)
    y.sum().backward()
    assert y.shape == (2, 0, 8) and q.grad.shape == q.shape


@pytest.mark.usefixtures("nan_filled_empty")
def test_no_sequence_gives_positions_a_gradient_of_zeros():
    q, positions = torch.zeros(0, 9, 8), torch.ones(17, 8)
    y, normal = cpu_attention.attention(q, q, q, None, 2, 0.0, 0, (q, positions))
    grads = cpu_attention.attention_backward(y, q, q, q, None, normal, 0.0, 0, None, (q, positions))
    assert torch.equal(grads[4], torch.zeros(17, 8))
