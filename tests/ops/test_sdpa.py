# SPDX-License-Identifier: Apache-2.0
"""The choice among torch's attention implementations; a CPU, which has two, plays the GPU."""

import json

import pytest
import torch
import torch.nn.functional as F

from sniper.ops import sdpa, timings


@pytest.fixture(autouse=True)
def played(monkeypatch, tmp_path):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    monkeypatch.setattr(sdpa, "_chooses", lambda q: True)
    return tmp_path


@pytest.mark.parametrize("masked", [False, True])
def test_what_cannot_run_is_left_out_without_a_word(played, masked, recwarn):
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 1, 7) < 0.8 if masked else None
    if masked:
        mask[..., 0] = True
    y = sdpa.scaled_dot_product(q, k, v, mask, 0.0)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(y, wanted)
    got = torch.autograd.grad(y.sum(), (q, k, v))
    for ours, theirs in zip(got, torch.autograd.grad(wanted.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(ours, theirs)
    (choice,) = json.loads((played / "backend-times-3.json").read_text())["choices"].values()
    assert "math" in choice["seconds"] and {"cudnn", "efficient"} <= set(choice["failed"])
    assert not [w for w in recwarn if "is not used" in str(w.message)]


@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_flash_attention_hides_keys(channels, dtype):
    """Whatever lies in hidden keys; a sequence without any key gives zeros."""
    shape = (3, 2, 7, channels)
    q, k, v = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
    mask = torch.arange(7) < torch.tensor([7, 4, 0])[:, None]
    mask = mask[:, None, None, :]
    poisoned = [t.masked_fill(~mask.mT, float("inf")).requires_grad_() for t in (k, v)]
    q.requires_grad_()
    y = sdpa._run("flash", q, *poisoned, mask, 0.0)
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(y, wanted, **close)
    assert y.shape == shape and not y[2].any() and y.dtype == dtype
    dy = torch.randn(shape, dtype=torch.float64)
    got = torch.autograd.grad(y, (q, *poisoned), dy.to(dtype))
    for ours, theirs in zip(got, torch.autograd.grad(wanted, leaves, dy), strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    assert not got[1].masked_select(~mask.mT).any() and not got[2].masked_select(~mask.mT).any()


def test_flash_attention_is_a_candidate_for_key_masks_alone(played):
    q = torch.randn(2, 3, 7, 8)
    keys = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    pairs = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    for mask, taken in ((None, True), (keys, True), (pairs, False)):
        assert ("flash" in sdpa._candidates(q, q, q, mask, 0.0)[0]) == taken


def test_what_takes_no_dropout_is_left_out(played, monkeypatch):
    inner = F.scaled_dot_product_attention

    def attention(*args, dropout_p=0.0, **kwargs):
        if dropout_p and not torch.backends.cuda.math_sdp_enabled():
            raise RuntimeError("no dropout")
        return inner(*args, dropout_p=dropout_p, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    q = torch.randn(2, 3, 7, 8)
    before = torch.get_rng_state()
    timed, compared = sdpa._candidates(q, q, q, None, 0.5)
    with pytest.raises(RuntimeError, match="no dropout"):
        compared["flash"]()
    # Compared without dropout, timed with it.
    assert all(
        torch.equal(a, b) for a, b in zip(compared["math"](), compared["math"](), strict=True)
    )
    assert not torch.equal(timed["math"]()[0], compared["math"]()[0])
    assert torch.equal(torch.get_rng_state(), before)
    sdpa.scaled_dot_product(q, q, q, None, 0.5)
    sdpa.scaled_dot_product(q, q, q, None, 0.0)
    choices = json.loads((played / "backend-times-3.json").read_text())["choices"]
    assert sorted("flash" in c["failed"] for c in choices.values()) == [False, True]


def test_a_mask_is_made_into_what_is_added_once_for_all_layers():
    keys = torch.rand(2, 7) < 0.5
    q = torch.randn(2, 3, 7, 8)
    views = [keys[:, None, None, :] for _ in range(2)]
    first, second = (sdpa._added(view, q) for view in views)
    assert first is second and first.dtype == q.dtype
    assert torch.equal(first == 0, views[0]) and torch.equal(first.isinf(), ~views[0])
    assert sdpa._added(views[0], q.double()).dtype == torch.float64
    assert sdpa._added(keys[:, None, :, None], q).shape == (2, 1, 7, 1)


def test_ours_is_one_more_candidate(played):
    """It is taken where it computes the same, and left out where it does not."""

    def right(q, k, v, p, seed=None):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)

    def wrong(q, k, v, p, seed=None):
        return right(q, k, v, p) + 0.1

    q = torch.randn(2, 3, 7, 8)
    for heads, ours in ((3, right), (2, wrong)):
        q = torch.randn(2, heads, 7, 8)
        y = sdpa.scaled_dot_product(q, q, q, None, 0.0, ours)
        torch.testing.assert_close(y, F.scaled_dot_product_attention(q, q, q))
    choices = json.loads((played / "backend-times-3.json").read_text())["choices"]
    assert ["ours" in c["failed"] for c in choices.values()] == [False, True]
    assert "ours" in next(iter(choices.values()))["seconds"]


def test_measuring_draws_nothing_of_what_a_model_draws(played):
    seeds = []

    def ours(q, k, v, p, seed):
        seeds.append(seed)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)

    q = torch.randn(2, 3, 7, 8)
    before = torch.get_rng_state()
    timed, compared = sdpa._candidates(q, q, q, None, 0.5, ours)
    compared["ours"](), timed["ours"]()
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds and all(seed is seeds[0] is not None for seed in seeds)
    # A model's call draws its own.
    sdpa._run("ours", q, q, q, None, 0.5, ours)
    assert seeds[-1] is None


def test_dropout_is_torchs():
    q = torch.randn(1, 2, 64, 8)
    ones = torch.ones(1, 2, 64, 8)
    y = sdpa.scaled_dot_product(q, q, ones, None, 0.5)
    assert 0.8 < float(y.mean()) < 1.2 and y.std() > 0.05
