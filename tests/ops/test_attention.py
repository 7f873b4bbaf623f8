# SPDX-License-Identifier: Apache-2.0
"""Attention against its formula written out, with the dropout mask read back from the generator."""

import math

import pytest
import torch
from torch import Tensor

from sniper.ops.attention import _attention, attention
from sniper.ops.backends.cpu import elementwise as cpu_elementwise


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


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("keys", [624, 700, 1100])
def test_few_keys_fewer_than_there_are(keys):
    """Tiles have as many queries as the scratch memory has room for, also where few keys count and
    their scores are short: two threads would write into each other's.
    """
    torch.set_num_threads(2)
    given = [torch.randn(4, keys + 1, 192) for _ in range(3)]
    mask = (torch.arange(keys + 1) < keys).expand(4, -1)
    ours = [t.clone().requires_grad_() for t in given]
    exact = [t.double().requires_grad_() for t in given]
    y, _ = _attention(*ours, mask, 1, 0.1, torch.tensor(7))
    wanted = written_out(*exact, 1, mask, 0.1, 7)
    assert relative(y, wanted) < 1e-5
    dy = torch.randn(4, keys + 1, 192)
    y.backward(dy)
    wanted.backward(dy.double())
    for got, want in zip(ours, exact, strict=True):
        assert relative(got.grad, want.grad) < 1e-5


def test_strided_inputs_are_read_where_they_lie():
    packed = torch.randn(2, 9, 48)
    q, k, v = packed.split(16, dim=2)
    seed = torch.tensor(5)
    y, _ = _attention(q, k, v, None, 2, 0.5, seed)
    again, _ = _attention(q.contiguous(), k.contiguous(), v.contiguous(), None, 2, 0.5, seed)
    assert torch.equal(y, again)


def test_what_one_product_gave_gets_one_gradient():
    x = torch.randn(2, 9, 48)
    mask = torch.rand(2, 9) < 0.8
    results, places = [], []
    for together in (True, False):
        given = x.clone().requires_grad_()
        parts = given.chunk(3, -1) if together else [t.contiguous() for t in given.chunk(3, -1)]
        for t in parts:
            t.register_hook(lambda grad: places.append(grad.untyped_storage().data_ptr()))
        torch.manual_seed(3)
        y = attention(*parts, 2, mask, 0.3)
        y.square().sum().backward()
        results.append((y, given.grad))
    assert len(set(places[:3])) == 1 and len(set(places[3:])) == 3
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_row_without_keys_is_zero_not_nan():
    q = torch.randn(2, 4, 8)
    mask = torch.tensor([[True] * 4, [False] * 4])
    y, _ = _attention(q, q, q, mask, 1, 0.3, torch.tensor(0))
    assert torch.isfinite(y).all() and (y[1] == 0).all() and (y[0] != 0).any()


def gradients(q, k, v, mask, heads, p, dy, seed=7) -> tuple[Tensor, ...]:
    """y, dq, dk and dv in float32."""
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    y, _ = _attention(*leaves, mask, heads, p, torch.tensor(seed))
    return (y, *torch.autograd.grad(y, leaves, dy))


@pytest.mark.usefixtures("isa", "nan_filled_empty")
class TestKernel:
    """One case for each way through the kernel, on every instruction set."""

    # More than one tile of queries and strip of keys; channels that fill no vector, one and several
    # strips of them; a single query or key; chunks of queries, whose sums are added.
    @pytest.mark.parametrize(
        ("batch", "heads", "queries", "keys", "channels"),
        [(2, 2, 100, 130, 20), (1, 1, 200, 97, 192), (1, 3, 1, 33, 7), (9, 2, 13, 1, 80)],
    )
    @pytest.mark.parametrize("p", [0.0, 0.3])
    def test_value_and_gradients(self, batch, heads, queries, keys, channels, p):
        sizes = ((queries, channels), (keys, channels), (keys, channels), (queries, channels))
        q, k, v, dy = (torch.randn(batch, t, heads * c) for t, c in sizes)
        got = gradients(q, k, v, None, heads, p, dy)
        exact = [t.double().requires_grad_() for t in (q, k, v)]
        y = written_out(*exact, heads, None, p, 7)
        wanted = (y, *torch.autograd.grad(y, exact, dy.double()))
        for ours, theirs in zip(got, wanted, strict=True):
            # With one key nothing depends on q and k.
            assert relative(ours, theirs) < 2e-6 or (keys == 1 and ours.norm() < 1e-5)

    def test_hidden_keys_are_as_if_they_were_not_there(self):
        q, k, v, dy = (torch.randn(2, 70, 24) for _ in range(4))
        mask = torch.rand(2, 70) < 0.6
        mask[:, 0], mask[:, -1] = False, False
        # Not even what lies there is read.
        hidden = [t.masked_fill(~mask[..., None], math.nan) for t in (k, v)]
        y, dq, dk, dv = gradients(q, *hidden, mask, 2, 0.0, dy)
        for b, keys in enumerate(mask):
            alone = [t[b : b + 1, keys] for t in (k, v)]
            wanted = gradients(q[b : b + 1], *alone, None, 2, 0.0, dy[b : b + 1])
            got = (y[b], dq[b], dk[b, keys], dv[b, keys])
            for ours, theirs in zip(got, wanted, strict=True):
                assert torch.equal(ours, theirs[0])
            assert not dk[b, ~keys].any() and not dv[b, ~keys].any()

    def test_rows_without_keys_are_zero_and_so_are_their_gradients(self):
        q, k, v, dy = (torch.randn(2, 5, 12) for _ in range(4))
        mask = torch.tensor([[True] * 5, [False] * 5])
        for t in gradients(q, k, v, mask, 3, 0.3, dy):
            assert t[0].any() and not t[1].any()

    def test_large_scores_do_not_overflow(self):
        q = torch.tensor([[[1e30], [1.0]]])
        k, v = torch.tensor([[[1.0], [1.0], [-1.0], [-90.0]]]), torch.eye(4)[None, :, :1]
        y, *grads = gradients(q, k, v, None, 1, 0.0, torch.ones(1, 2, 1))
        assert torch.allclose(y[0, :, 0], torch.tensor([0.5, 0.4683105]))
        assert torch.isfinite(grads[2]).all()

    def test_bits_do_not_depend_on_the_number_of_threads(self):
        q, k, v, dy = (torch.randn(3, 210, 32) for _ in range(4))
        mask = torch.arange(210) < torch.tensor([210, 100, 3])[:, None]
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(q, k, v, mask, 1, 0.2, dy))
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


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
