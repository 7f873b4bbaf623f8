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
    assert ("flash" in {*choice["seconds"], *choice["failed"]}) == (not masked)
    assert not [w for w in recwarn if "is not used" in str(w.message)]


def test_dropout_is_torchs():
    q = torch.randn(1, 2, 64, 8)
    ones = torch.ones(1, 2, 64, 8)
    y = sdpa.scaled_dot_product(q, q, ones, None, 0.5)
    assert 0.8 < float(y.mean()) < 1.2 and y.std() > 0.05
