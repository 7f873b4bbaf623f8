# SPDX-License-Identifier: Apache-2.0
"""One launch for all parameters, against torch's Adam on gradients that are zero where pruned."""

from __future__ import annotations

import pytest
import torch

from sniper.ops.backends.triton.adam import AdamTable, Entry, key_of, takes
from sniper.ops.geometry import as_matrix
from sniper.ops.layout import BlockLayout
from sniper.ops.pruned import mask_blocks_

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    {"amsgrad": True, "betas": (0.0, 0.99), "eps": 1e-6},
]
FACTORS = (1.0, 4.0)


def parameters(block: int, device: str) -> list[tuple[torch.Tensor, BlockLayout | None]]:
    """A masked convolution in our memory order, a masked matrix, and stretches of odd sizes."""
    found: list[tuple[torch.Tensor, BlockLayout | None]] = []
    for shape in ((3, 2, 2), (2, 1, 3)) if block < 128 else ((3, 2, 1), (2, 1, 2)):
        mask = torch.rand(shape) < 0.5
        mask[0], mask[1, 0, 0] = False, True
        layout = BlockLayout(mask, block).to(device)
        n, c = shape[0] * block, shape[2] * block
        weight = torch.randn(n, shape[1] * c, device=device)
        mask_blocks_(weight, layout)
        if shape[1] > 1:
            weight = weight.view(n, shape[1], c).permute(0, 2, 1)
        found.append((weight, layout))
    found += [(torch.randn(size, device=device), None) for size in (1, 1023, 1024, 2500)]
    return found


def entries(weights, grads, states, options) -> list[Entry]:
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, **options}
    rest = (options["betas"], options["eps"], options["weight_decay"])
    rest += (options.get("decoupled_weight_decay", False), options.get("maximize", False))
    return [
        Entry(w, g, s["m"], s["v"], s.get("most"), s["step"], i % 2, FACTORS[i % 2], *rest, layout)
        for i, ((w, layout), g, s) in enumerate(zip(weights, grads, states, strict=True))
    ]


@pytest.mark.parametrize(("block", "options"), [(16, 0), (32, 1), (64, 2), (128, 3), (16, 3)])
def test_equals_torchs_adam(block, options, device):
    options = OPTIONS[options]
    ours = parameters(block, device)
    theirs = [w.detach().cpu().double().clone().requires_grad_() for w, _ in ours]
    rates = (3e-3, 1e-2)
    groups = [
        {"params": [p for i, p in enumerate(theirs) if i % 2 == g], "lr": rates[g] * FACTORS[g]}
        for g in (0, 1)
    ]
    optimizer = torch.optim.Adam(groups, **options)
    grads = [torch.zeros_like(w) for w, _ in ours]
    names = ["m", "v", "most"] if options.get("amsgrad") else ["m", "v"]
    states = [
        {name: torch.zeros_like(w) for name in names} | {"step": torch.zeros((), device=device)}
        for w, _ in ours
    ]
    table = AdamTable(entries(ours, grads, states, options))
    for step in range(3):
        for (_, layout), grad, p in zip(ours, grads, theirs, strict=True):
            grad.copy_(torch.randn(grad.shape))
            if layout is not None:  # what lies in pruned places is not read
                grad_there = grad.clone()
                mask_blocks_(as_matrix(grad_there), layout)
                p.grad = grad_there.cpu().double()
                hidden = (as_matrix(grad_there) != as_matrix(grad)).nonzero()
                as_matrix(grad)[hidden[:, 0], hidden[:, 1]] = float("nan")
            else:
                p.grad = grad.cpu().double()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        squares = table.norm_squared()
        torch.testing.assert_close(squares.sqrt().cpu(), norm, rtol=1e-6, atol=0)
        for state in states:
            state["step"] += 1
        scale = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0).float()
        table.update(rates, scale, clear=step == 1)
        optimizer.step()
        for (weight, _), p in zip(ours, theirs, strict=True):
            # Where gradient and weight decay nearly cancel, float32 leaves few digits of their sum,
            # which Adam divides by its own size: up to some 1e-4 of a step of 1e-2.
            torch.testing.assert_close(weight.cpu().double(), p.detach(), rtol=1e-5, atol=1e-6)
    for (weight, layout), grad in zip(ours, grads, strict=True):
        if layout is not None:
            assert not as_matrix(weight)[~layout.element_mask().flatten(1)].any()
        assert grad.nan_to_num(0).any()
    table.clear()
    assert not any(grad.nan_to_num(0).any() for grad in grads)


def test_a_table_is_made_anew_for_other_memory_masks_and_rates(device):
    (weight, layout), *_ = parameters(16, device)
    state = {name: torch.zeros_like(weight) for name in ("m", "v")}
    state["step"] = torch.zeros((), device=device)
    grad = torch.zeros_like(weight)

    def key(**options):
        return key_of(entries([(weight, layout)], [grad], [state], options))

    before = key()
    assert key() == before
    assert key(weight_decay=0.1) != before and key(betas=(0.9, 0.99)) != before
    mask = layout.block_mask.clone()
    mask[1] = True
    layout.update(mask)
    after = key()
    assert after != before
    grad = grad.clone()
    assert key() != after


def test_what_the_kernels_do_not_take(device):
    assert takes(torch.zeros(8, device=device), None)
    assert not takes(torch.zeros(8, device=device).double(), None)
    assert not takes(torch.zeros(9, device=device)[1:], None)  # half of a vector's alignment
    weight = torch.zeros(8, device=device)
    weight.grad = torch.zeros(9, device=device)[1:]  # as DDP's buckets have them
    assert not takes(weight, None)
    assert not takes(torch.zeros(8, 8, device=device), BlockLayout(torch.ones(1, 1) > 0, 8))
    (weight, layout), *_ = parameters(16, device)
    grad = torch.zeros(weight.shape, device=device)
    state = {"m": grad, "v": grad, "step": torch.zeros((), device=device)}
    with pytest.raises(ValueError, match="grad: expected the weight's .* memory order, got"):
        AdamTable(entries([(weight, layout)], [grad], [state], {}))
    with pytest.raises(ValueError, match="entries: expected at least one, got none"):
        AdamTable([])
