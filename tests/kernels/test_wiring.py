# SPDX-License-Identifier: Apache-2.0
"""The custom ops on the Triton backend: layers, gradients, registrations, changing layouts."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from sniper import BlockSparseConv1d, BlockSparseLinear
from sniper.layers import Dropout, add_norm, batch_norm, layer_norm, sparsify
from sniper.ops import autotune, dispatch, gradients, selfcheck, timings, use_backend
from sniper.ops.backends import elementwise as ops_elementwise
from sniper.ops.backends.triton import adam as triton_adam
from sniper.ops.backends.triton import batch_norm as triton_batch_norm
from sniper.ops.backends.triton import elementwise as triton_elementwise
from sniper.ops.backends.triton import launch
from sniper.ops.backends.triton import loss as triton_loss
from sniper.ops.backends.triton import norm as triton_norm
from sniper.ops.backends.triton import positions as triton_positions
from sniper.ops.backends.triton import regulator as triton_regulator
from sniper.ops.backends.triton.products import TRITON, TritonBackend
from sniper.ops.batch_norm import _gradients, _normalised, _statistics
from sniper.ops.block_matmul import _dgrad, _fwd, _wgrad
from sniper.ops.dropout import draw_seed, relu_dropout_grad_bias
from sniper.ops.norm import _add_norm, _add_norm_backward
from sniper.optim import Adam, table
from sniper.tts.corpus.batch import Batch
from sniper.tts.model import transformer
from sniper.tts.model.config import FastSpeech2Config
from sniper.tts.model.fastspeech2 import FastSpeech2
from sniper.tts.model.transformer import FeedForward, Postnet, StackConfig, TransformerStack

pytestmark = pytest.mark.usefixtures("nan_filled_empty")
OPS = ("product", "wgrad")


def pair(device: str, conv: bool) -> tuple[nn.Module, nn.Module]:
    """A masked layer, and a plain one on the CPU with the same weights."""
    if conv:
        layer = BlockSparseConv1d(32, 48, 3, padding=1, block_size=16)
        plain = nn.Conv1d(32, 48, 3, padding=1)
    else:
        layer, plain = BlockSparseLinear(32, 48, block_size=16), nn.Linear(32, 48)
    layer.to(device)
    layer.set_block_mask(torch.rand(layer.block_mask_shape, device=device) < 0.5)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


@pytest.mark.parametrize("conv", [False, True])
def test_a_layer_trains_as_masked_dense_does(conv, device):
    layer, plain = pair(device, conv)
    for density in (0.5, 1.0):
        if density == 1.0:  # the schedule lowers the sparsity: same tensors, more blocks
            layer.set_block_mask(torch.ones(layer.block_mask_shape, device=device).bool())
        x = torch.randn((2, 32, 9) if conv else (2, 9, 32), device=device)
        ours, theirs = x.clone().requires_grad_(), x.cpu().clone().requires_grad_()
        layer.zero_grad(), plain.zero_grad()
        with use_backend("triton"):
            y = layer(ours)
            expected = plain(theirs)
            dy = torch.randn_like(y)
            y.backward(dy), expected.backward(dy.cpu())
        torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-4)
        dw, db = layer.weight.grad.cpu(), layer.bias.grad.cpu()
        torch.testing.assert_close(dw, plain.weight.grad * (dw != 0), rtol=1e-4, atol=1e-4)
        assert (dw != 0).float().mean() > density - 0.3
        torch.testing.assert_close(db, plain.bias.grad, rtol=1e-4, atol=1e-4)


def test_relu_and_dropout_end_the_pass(device):
    layer, _ = pair(device, conv=False)
    x = torch.randn(2, 9, 32, device=device, requires_grad=True)
    torch.manual_seed(3)
    with use_backend("triton"):
        y = layer(x, relu_dropout=0.5)
        y.sum().backward()
        torch.manual_seed(3)
        assert torch.equal(layer(x, relu_dropout=0.5), y)
    assert 0.6 < (y == 0).float().mean() < 0.9
    # The gradient goes through what was kept, twice as large.
    kept = (y != 0).to(x.dtype) * 2
    torch.testing.assert_close(x.grad, kept @ layer.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("served", ["triton", "dense"])
def test_a_gradient_that_is_handed_over(kernel, served, device, monkeypatch):
    """Between two layers nobody visits ReLU's and dropout's gradient, but where torch computes the
    product behind them; on a GPU under autocast too, which the interpreter's CPU does not take.
    """
    ffn = FeedForward(32, 64, (kernel, kernel), 0.25).to(device)
    sparsify(ffn, block_size=16)
    for layer in (ffn.conv1, ffn.conv2):
        mask = torch.rand(layer.block_mask_shape, device=device) < 0.5
        mask[0] = False
        layer.set_block_mask(mask)
    visits = []
    # With the bias's gradient where the weight's does not bring it, as on an sm_90 in such blocks.
    for where, name in (
        (ops_elementwise, "relu_dropout_backward"),
        (triton_elementwise, "relu_dropout_backward_bias"),
    ):
        inner = getattr(where, name)
        counted = lambda *args, inner=inner: visits.append(1) or inner(*args)  # noqa: E731
        monkeypatch.setattr(where, name, counted)
    x, dy = (torch.randn(2, 9, 32, device=device) for _ in range(2))

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        ffn.zero_grad()
        with use_backend(served), torch.autocast(device, torch.bfloat16, device == "cuda"):
            y = ffn(leaf)
        with use_backend(served):
            y.float().backward(dy)
        return [leaf.grad, *(p.grad.clone() for p in ffn.parameters())]

    together = gradients()
    assert len(visits) == (served == "dense")
    monkeypatch.setattr(transformer, "handed_over_rate", lambda *args: None)
    apart = gradients()
    assert len(visits) == (1 if served == "triton" else 2) and together[0].any()
    for got, wanted in zip(together, apart, strict=True):
        # Under autocast the two round in another order.
        assert (got - wanted).norm() <= (1e-2 if x.is_cuda else 1e-5) * wanted.norm()


@pytest.mark.parametrize("conv", [False, True])
def test_the_gradient_of_relu_brings_the_biass(conv, device, monkeypatch):
    """Where the weight's gradient does not bring it: the interpreter plays such a GPU, an sm_90 is
    one in blocks of this size, and a weight that is frozen has none.
    """
    layer, plain = pair(device, conv)
    monkeypatch.setattr(TritonBackend, "serves", lambda self, x: True)
    calls = []
    inner = triton_elementwise.relu_dropout_backward_bias
    monkeypatch.setattr(
        triton_elementwise,
        "relu_dropout_backward_bias",
        lambda *args: calls.append(1) or inner(*args),
    )
    x = torch.randn((2, 32, 9) if conv else (2, 9, 32), device=device)
    with use_backend("triton"):
        y = layer(x, relu_dropout=0.0)
        expected = plain(x.cpu()).relu()
        torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)
        dy = torch.randn_like(y)
        y.backward(dy), expected.backward(dy.cpu())
    brought = x.is_cuda and TRITON.sums_along(x, layer.block_size)
    assert calls == ([] if brought else [1])
    torch.testing.assert_close(layer.bias.grad.cpu(), plain.bias.grad, rtol=1e-4, atol=1e-4)
    dw = layer.weight.grad.cpu()
    torch.testing.assert_close(dw, plain.weight.grad * (dw != 0), rtol=1e-4, atol=1e-4)
    assert dw.any() and layer.bias.grad.any()
    layer.weight.requires_grad_(False)
    layer.bias.grad = None
    with use_backend("triton"):
        layer(x, relu_dropout=0.0).backward(dy)
    assert calls == ([1] if brought else [1, 1])
    torch.testing.assert_close(layer.bias.grad.cpu(), plain.bias.grad, rtol=1e-4, atol=1e-4)


def test_autotune(device, monkeypatch, tmp_path):
    """A layer whose passes were tuned on the way computes the same."""
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    monkeypatch.setattr(TritonBackend, "takes", lambda self, which, x, layout: True)
    layer, plain = pair(device, conv=False)
    x = torch.randn(1, 9, 32, device=device)
    autotune(True)
    try:
        y = layer(x)
        dy = torch.randn_like(y)
        y.backward(dy), plain(x.cpu()).backward(dy.cpu())
    finally:
        autotune(False)
    torch.testing.assert_close(y.cpu(), plain(x.cpu()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad.cpu(), plain.bias.grad, rtol=1e-4, atol=1e-4)
    times = (tmp_path / "backend-times-3.json").read_text()
    assert times.count('"triton ') == 2 and " warps " in times  # fwd and wgrad: x has no gradient


def test_registrations(device):
    layer, _ = pair(device, conv=False)
    x = torch.randn(1, 5, 32, device=device, requires_grad=True)
    handle, geometry = layer.layout.handle, (1, 0, 0)
    with use_backend("triton"):
        args = (x, layer.weight, layer.bias, handle, *geometry, True, 0.0, None)
        torch.library.opcheck(_fwd.op, args)
        dy = torch.randn(1, 5, 48, device=device)
        torch.library.opcheck(_dgrad.op, (dy, layer.weight.detach(), handle, *geometry, 5))
        for bias in (False, True):
            args = (dy, x.detach(), 1, bias, handle, *geometry)
            torch.library.opcheck(_wgrad.op, args)
        y = torch.randn_like(dy)
        torch.library.opcheck(relu_dropout_grad_bias.op, (dy, y, 0.25))


def test_a_convolutions_registrations(device):
    layer, _ = pair(device, conv=True)
    x = torch.randn(2, 9, 32, device=device, requires_grad=True)
    handle, geometry = layer.layout.handle, (1, 1, 1)
    with use_backend("triton"):
        args = (x, layer.weight, layer.bias, handle, *geometry, False, 0.0, None)
        torch.library.opcheck(_fwd.op, args)
        dy = torch.randn(2, 9, 48, device=device)
        torch.library.opcheck(_dgrad.op, (dy, layer.weight.detach(), handle, *geometry, 9))
        torch.library.opcheck(_wgrad.op, (dy, x.detach(), 3, True, handle, *geometry))


@pytest.mark.parametrize("in_place", [False, True])
def test_adam_visits_everything_in_one_launch(in_place, device, monkeypatch):
    """`sniper.optim` on a GPU: norm, update and clearing from one table, made once."""
    monkeypatch.setattr(table, "_served", lambda p, layout: True)
    monkeypatch.setattr(table, "_by_device", lambda rows: ([], [rows] if rows else []))
    made = []
    inner = triton_adam.AdamTable.__init__
    monkeypatch.setattr(
        triton_adam.AdamTable, "__init__", lambda self, e: made.append(1) or inner(self, e)
    )
    layer, _ = pair(device, conv=True)
    plain = copy.deepcopy(layer)
    options = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3}  # the usual eps makes steps of noise
    ours = Adam(layer.parameters(), **options)
    ours.zero_in_place = in_place
    theirs = torch.optim.Adam(plain.parameters(), **options)
    for step in range(4):
        x = torch.randn(2, 32, 9, device=device)
        for model in (layer, plain):
            model(x).square().mean().backward()
        norm = ours.clip(0.1)
        assert norm.device == x.device
        wanted = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        torch.testing.assert_close(norm, wanted, rtol=1e-5, atol=0)
        ours.step(), theirs.step()
        theirs.zero_grad()
        if not in_place:
            ours.zero_grad(set_to_none=False)
        assert not layer.weight.grad.any() and not layer.bias.grad.any()
        for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        if step == 1:  # other blocks, and another learning rate
            mask = torch.ones(layer.block_mask_shape, device=device).bool()
            layer.set_block_mask(mask), plain.set_block_mask(mask)
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["lr"] = 0.02
    # One for each mask: another rate, or gradients that were cleared, are no reason for others.
    assert len(made) == 2


@pytest.mark.parametrize("last", ["no gradient", "bfloat16"])
def test_adam_has_a_last_group_without_an_entry(last, device, monkeypatch):
    """A frozen backbone, or parameters that torch's functions update."""
    monkeypatch.setattr(table, "_by_device", lambda rows: ([], [rows] if rows else []))
    head, other = nn.Linear(16, 16, device=device), nn.Linear(16, 16, device=device)
    if last == "bfloat16":
        other.to(torch.bfloat16)
    plain = copy.deepcopy(nn.ModuleList([head, other]))
    optimizers = [
        kind([{"params": m[0].parameters()}, {"params": m[1].parameters(), "lr": 1e-4}], lr=1e-2)
        for kind, m in ((Adam, nn.ModuleList([head, other])), (torch.optim.Adam, plain))
    ]
    for model in ([head, other], plain):
        for layer in list(model)[: 1 if last == "no gradient" else 2]:
            for p in layer.parameters():
                p.grad = torch.full_like(p, 0.5)
    for optimizer in optimizers:
        optimizer.step()
    for layer, wanted in zip([head, other], plain, strict=True):
        torch.testing.assert_close(layer.weight, wanted.weight)


@pytest.mark.parametrize("conv", [False, True])
def test_a_weights_gradient_is_added_in_place_through_a_cast(conv, device):
    """Under autocast the product reads a copy of the weight; its gradient goes to the weight's."""
    layer, _ = pair(device, conv)
    plain = copy.deepcopy(layer)
    layer.weight.grad = torch.zeros_like(layer.weight)
    pruned = ~layer.layout.element_mask()  # [N, taps, C]
    pruned = pruned.permute(0, 2, 1) if conv else pruned[:, 0]
    layer.weight.grad[pruned] = 7.0  # is not visited
    gradients.adopt(layer.weight)
    place = layer.weight.grad.data_ptr()
    x = torch.randn((2, 32, 9) if conv else (2, 9, 32), device=device)
    with use_backend("triton"):
        for _ in range(2):
            for model in (layer, plain):
                with torch.autocast(x.device.type, torch.float16):
                    y = model(x)
                y.float().square().sum().backward()
    assert layer.weight.grad.data_ptr() == place
    assert (layer.weight.grad[pruned] == 7.0).all()
    got, wanted = layer.weight.grad[~pruned], plain.weight.grad[~pruned]
    assert (got - wanted).norm() <= 1e-3 * wanted.norm() and wanted.any()
    assert not plain.weight.grad[pruned].any()


def test_a_dense_weight_gradient_is_added_where_blocks_are_active(device, monkeypatch):
    """Where torch's product is the faster one, and the place of the sum is known."""
    monkeypatch.setattr(TritonBackend, "takes", lambda self, which, x, layout: True)
    added = []
    inner = TritonBackend.add_blocks
    monkeypatch.setattr(
        TritonBackend, "add_blocks", lambda self, *args: added.append(1) or inner(self, *args)
    )
    layer, _ = pair(device, conv=True)
    plain = copy.deepcopy(layer)
    gradients.adopt(layer.weight)
    x = torch.randn(2, 32, 9, device=device)
    with use_backend("dense"):
        for _ in range(2):
            for model in (layer, plain):
                model(x).square().sum().backward()
    assert added == [1, 1]
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("failed", ["product", "wgrad", "elementwise"])
def test_what_failed_its_check_is_left_to_torch_and_the_rest_runs(failed, device, monkeypatch):
    """One family out: what comes next computes its pass, and values are right."""
    monkeypatch.delenv("SNIPER_SELF_CHECK")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of dense convolutions
    families = ["elementwise", *(f"{p} {op}" for p in ("tma", "pointer") for op in OPS)]
    verdicts = {name: selfcheck.Verdict(not name.endswith(failed)) for name in families}
    monkeypatch.setattr(selfcheck, "check", lambda *args: verdicts)
    monkeypatch.setattr(launch, "usable", lambda x: True)
    # Ours wherever they may run: the interpreter would lose on time.
    monkeypatch.setattr(timings, "fastest", lambda key, calls, **options: next(iter(calls)))
    layer, plain = pair(device, conv=True)
    x = torch.randn(2, 32, 9, device=device, requires_grad=True)
    y = layer(x, relu_dropout=0.0)
    expected = plain(x.detach().cpu()).relu()
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(y)
    y.backward(dy), expected.backward(dy.cpu())
    dw = layer.weight.grad.cpu()
    torch.testing.assert_close(dw, plain.weight.grad * (dw != 0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad.cpu(), plain.bias.grad, rtol=1e-4, atol=1e-4)
    ran = {which: run[0] for which, run in dispatch.last_runs(layer.layout).items()}
    next_best = "dense" if x.is_cuda else "cpu"
    product, wgrad = (next_best if failed == op else "triton" for op in OPS)
    assert ran == {"fwd": product, "dgrad": product, "wgrad": wgrad}
    assert TritonBackend().serves(x) == (failed != "elementwise")


@pytest.fixture
def norm_served(monkeypatch) -> list[tuple[int, ...]]:
    """Lets the interpreter play a GPU whose norm kernel is trusted; the shapes it was given."""
    shapes = []
    inner = triton_norm.add_norm
    monkeypatch.setattr(triton_norm, "serves", lambda x: True)
    monkeypatch.setattr(
        triton_norm, "add_norm", lambda x, *rest: shapes.append(tuple(x.shape)) or inner(x, *rest)
    )
    return shapes


def result_and_gradients(
    stack: nn.Module, x: torch.Tensor, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    """The result of a stack and every gradient, with the same draws at each call."""
    torch.manual_seed(5)
    x = x.clone().requires_grad_()
    stack.zero_grad()
    device = x.device.type
    # A convolution in tf32 would round what differs in the last bit.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None), exact:
        y = stack(x, None)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        y.backward(torch.linspace(-1, 1, y.numel(), device=device).sin().view_as(y))
    # A key's bias moves all scores of a query alike: its gradient is rounding.
    named = [p.grad.clone() for n, p in stack.named_parameters() if not n.endswith("key.bias")]
    return [y.detach(), x.grad, *named]


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_stack_is_what_torchs_functions_make_of_it(pre_norm, autocast, device, norm_served):
    """On the CPU also with dropout: both draw the same masks."""
    p = 0.2 if device == "cpu" else 0.0
    config = StackConfig(32, 2, 2, 48, (3, 1), p, p, p, pre_norm, True)
    stack, x = TransformerStack(config).to(device), torch.randn(2, 9, 32, device=device)
    ours = result_and_gradients(stack, x, autocast)
    # Two a layer, and one before the first that has no sum to go with.
    assert norm_served == [(2, 9, 32)] * (5 if pre_norm else 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_norm, "serves", lambda x: False)
        theirs, exact = (
            result_and_gradients(stack, x, autocast),
            result_and_gradients(stack, x, None),
        )
    assert ours[0].dtype == theirs[0].dtype == torch.float32
    for got, other, wanted in zip(ours, theirs, exact, strict=True):
        # Rounded to bfloat16 where torch's are, so that it is no further from float32.
        off = (other - wanted).norm()
        assert (got - wanted).norm() <= 2 * off + 1e-5 * wanted.norm()


def test_gradients_of_gradients_of_add_norm(device, norm_served):
    norm, x, h = nn.LayerNorm(40, device=device), torch.randn(3, 40), torch.randn(3, 40)
    torch.nn.init.normal_(norm.weight)

    def second() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(2)
        leaves = [t.clone().to(device).requires_grad_() for t in (x, h)]
        s, y = add_norm(*leaves, Dropout(0.3 if device == "cpu" else 0.0), norm)
        loss = (s.sin() * y.cos()).sum()
        first = torch.autograd.grad(loss, [*leaves, norm.weight, norm.bias], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [*leaves, norm.weight])

    ours = second()
    assert norm_served
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_norm, "serves", lambda x: False)
        theirs = second()
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_a_predictor_is_what_torchs_functions_make_of_it(device, norm_served):
    """Its gradients of gradients too."""
    norm, x = nn.LayerNorm(40, device=device), torch.randn(3, 7, 40)
    torch.nn.init.normal_(norm.weight)

    def both(ours: bool) -> list[torch.Tensor]:
        torch.manual_seed(2)
        leaf = x.clone().to(device).requires_grad_()
        if ours:
            y = layer_norm(leaf, norm, relu=True, dropout=Dropout(0.3))
        else:
            ones = torch.ones(3, 7, 40, device=device)
            y = norm(leaf.relu()) * triton_elementwise.dropout(ones, 0.3, draw_seed(device))
        wanted = [leaf, norm.weight, norm.bias]
        plain = torch.autograd.grad(y.sin().sum(), wanted, retain_graph=True)
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        return [y, *plain, *second]

    ours = both(True)
    assert norm_served == [(3, 7, 40)]
    for got, wanted in zip(ours, both(False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("branch", [True, False])
def test_registrations_of_add_norm(branch, device):
    x = torch.randn(2, 3, 40, device=device, requires_grad=True)
    h = torch.randn(2, 3, 40, device=device).half().requires_grad_() if branch else None
    weight, bias = (torch.randn(40, device=device, requires_grad=True) for _ in range(2))
    seed = torch.tensor(7, device=device) if branch else None
    p = 0.25 if branch else 0.0
    args = (x, h, weight, bias, 1e-5, p, seed, torch.float16, not branch)
    torch.library.opcheck(_add_norm.op, args)
    s, y, mean, rstd = (t.detach() for t in _add_norm(*args))
    dtypes = (torch.float32, torch.float16 if branch else None)
    s, ds = (s, torch.randn_like(s)) if branch else (x.detach(), None)
    torch.library.opcheck(
        _add_norm_backward.op,
        (y, ds, s, mean, rstd, weight.detach(), *dtypes, p, seed, not branch, False),
    )


def test_a_postnet_is_what_torchs_functions_make_of_it(device, monkeypatch):
    ours = Postnet(16, 3, 32, 5, dropout=0.0).to(device).train()
    theirs = copy.deepcopy(ours)
    x, dy = torch.randn(2, 9, 16, device=device), torch.randn(2, 9, 16, device=device)
    results = []
    for model, served in ((ours, True), (theirs, False)):
        monkeypatch.setattr(triton_batch_norm, "serves", lambda x, served=served: served)
        torch.manual_seed(5)
        given = x.clone().requires_grad_()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            y = model(given)
            y.backward(dy)
        results.append([y, given.grad, *(q.grad for q in model.parameters()), *model.buffers()])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_gradients_of_gradients_of_batch_norm(device, monkeypatch):
    monkeypatch.setattr(triton_batch_norm, "serves", lambda x: True)
    norm, x = nn.BatchNorm1d(24, device=device), torch.randn(3, 24, 7)
    torch.nn.init.normal_(norm.weight)

    def second(ours: bool) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(2)
        leaf = x.clone().to(device).requires_grad_()
        if ours:
            y = batch_norm(leaf, norm, Dropout(0.3), tanh=True)
        else:
            rows = torch.ones(3, 7, 24, device=device)
            kept = triton_elementwise.dropout(rows, 0.3, draw_seed(device)).mT
            y = norm(leaf).tanh() * kept
        wanted = [leaf, norm.weight, norm.bias]
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    for got, wanted in zip(second(True), second(False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_registrations_of_batch_norm(device):
    x, dy = (torch.randn(2, 9, 40, device=device) for _ in range(2))
    weight, bias, mean, var = (torch.rand(40, device=device) for _ in range(4))
    count, seed = (torch.tensor(7, device=device) for _ in range(2))
    torch.library.opcheck(_statistics.op, (x, mean, var, count, 0.1, 1e-5))
    torch.library.opcheck(_statistics.op, (x, None, None, None, 0.1, 1e-5))
    normed = _statistics(x, None, None, None, 0.1, 1e-5)
    torch.library.opcheck(_gradients.op, (dy, x, *normed, weight, bias, True, 0.25, seed))
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    args = (leaves[0], *normed, *leaves[1:], 1e-5, True, 0.25, seed)
    torch.library.opcheck(_normalised.op, args)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_speech_models_step_is_what_torchs_functions_make_of_it(autocast, device, monkeypatch):
    """Positions, length regulator and loss, as a model calls them; in bfloat16 under autocast."""
    if autocast and device == "cpu":
        pytest.skip("the interpreter multiplies bfloat16 wrongly")
    sizes: dict = {"d_model": 32, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    sizes |= {"postnet_layers": 2, "postnet_channels": 16, "heads": 2}
    config = FastSpeech2Config(9, 20, **sizes)
    silent = {name: 0.0 for name in vars(config) if name.endswith("_dropout")}
    ours = FastSpeech2(replace(config, **silent)).to(device).eval()
    theirs = copy.deepcopy(ours)
    durations = torch.tensor([[2, 1, 3, 0], [4, 2, 0, 0]])
    batch = Batch(
        ["a", "b"],
        torch.tensor([[1, 2, 3, 4], [5, 6, 4, 0]]),
        torch.tensor([4, 3]),
        torch.randn(2, 6, 20),
        durations.sum(1),
        durations,
        torch.randn(2, 4),
        torch.randn(2, 4),
    ).to(device)
    results, calls = [], []
    for name, module in (("losses", triton_loss), ("repeat_tokens", triton_regulator),
                         ("add_positions", triton_positions)):  # fmt: skip
        run = getattr(module, name)
        counted = lambda *args, run=run, name=name: calls.append(name) or run(*args)  # noqa: E731
        monkeypatch.setattr(module, name, counted)
    for model, served in ((ours, True), (theirs, False)):
        for module in (triton_loss, triton_regulator, triton_positions):
            monkeypatch.setattr(module, "serves", lambda x, served=served: served)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            total, terms = model.loss(batch)
        total.backward()
        assert tuple(terms) == model.loss_terms
        # A softmax does not change with the key's bias, whose gradient is rounding.
        named = [(n, p.grad) for n, p in model.named_parameters() if not n.endswith("key.bias")]
        gradients = [grad for _, grad in named if grad is not None]
        results.append([total.detach(), *terms.values(), *gradients])
    assert calls == ["add_positions", "repeat_tokens", "add_positions", "losses"]
    for got, wanted in zip(*results, strict=True):
        # Under autocast torch adds up a token's frames in another precision.
        far = 2e-2 if autocast else 1e-4
        assert (got - wanted).norm() <= far * wanted.norm() + 1e-6
