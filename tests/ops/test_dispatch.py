# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from sniper import BlockSparseConv1d, BlockSparseLinear, ops
from sniper.ops import dispatch, timings
from sniper.ops.backends.cpu.products import CpuBackend
from sniper.ops.backends.reference import ReferenceBackend
from sniper.ops.backends.triton import tuning


def masked_layer() -> BlockSparseConv1d:
    layer = BlockSparseConv1d(32, 64, 3, padding=1, block_size=16)
    layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)
    return layer


def gradients(layer, x, name):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with ops.use_backend(name):
        y = layer(x)
        y.square().sum().backward()
    return [y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize("name", ["cpu", "dense"])
def test_every_backend_agrees_with_the_reference(name):
    layer, x = masked_layer(), torch.randn(2, 32, 9)
    for got, wanted in zip(
        gradients(layer, x, name), gradients(layer, x, "reference"), strict=True
    ):
        assert (got - wanted).norm() / wanted.norm() < 1e-5


def test_its_former_name():
    with pytest.warns(DeprecationWarning, match=r"write sniper\.ops\.use_backend"):
        assert ops.executor is ops.use_backend


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend: expected one of .*, got 'gpu'"):
        with ops.use_backend("gpu"):
            pass


def test_forcing_ends_with_the_block_even_after_an_error():
    with pytest.raises(KeyError):
        with ops.use_backend("reference"):
            assert dispatch.forced() == "reference"
            raise KeyError
    assert dispatch.forced() is None


@pytest.mark.parametrize("name", ["cpu", "dense", "reference"])
def test_relu_and_dropout_follow_the_seed_alike(name):
    layer, x = masked_layer(), torch.randn(2, 32, 9)
    results = {}
    for which in (name, "reference"):
        torch.manual_seed(5)
        with ops.use_backend(which):
            results[which] = layer(x, relu_dropout=0.5).detach()
    got, wanted = results[name], results["reference"]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert 0.5 < (got == 0).float().mean() < 1


def test_what_was_chosen_is_asked_for_again_where_something_has_changed(monkeypatch):
    asked, anew = [], dispatch._choose_anew
    monkeypatch.setattr(
        dispatch, "_choose_anew", lambda which, *args: asked.append(which) or anew(which, *args)
    )
    layer, x = masked_layer(), torch.randn(2, 32, 9)

    def asks(x: torch.Tensor = x) -> int:
        asked.clear()
        for _ in range(2):
            layer(x)
        return len(asked)

    layer(x)  # may be measured, which outdates what was chosen
    asks()
    assert asks() == 0
    with ops.use_backend("dense"):
        assert asks() == 1
        assert dispatch.last_runs(layer.layout)["fwd"][0] == "dense"
    with ops.use_backend("cpu"):
        assert asks() == 1
        assert dispatch.last_runs(layer.layout)["fwd"][0] == "cpu"
        assert asks(x.double().float()[:, :, :8]) == 0  # 16 tokens as 18: one power of two
        assert asks(x.repeat(4, 1, 1)) == 1
        layer.set_block_mask(~layer.block_mask)
        assert asks() == 1
        timings.outdate()
        assert asks() == 1
    assert dispatch.last_runs(layer.layout)["fwd"][0] == "cpu"


def test_explain_names_layers_passes_and_times(capsys):
    model = torch.nn.Sequential(masked_layer(), torch.nn.ReLU())
    model.append(BlockSparseLinear(9, 16, block_size=1))  # no mask: torch's own
    model(torch.randn(1, 32, 9, requires_grad=True)).sum().backward()
    table = ops.explain(model)
    assert capsys.readouterr().out.strip() == table
    lines = table.splitlines()
    assert lines[0].split() == ["layer", "density", "fwd", "dgrad", "wgrad"] and len(lines) == 2
    assert f"{model[0].density:.3f}" in lines[1] and " ms)" in lines[1]


def test_explain_of_a_model_without_masks_says_so(capsys):
    model = torch.nn.Sequential(BlockSparseLinear(32, 32, block_size=16), torch.nn.ReLU())
    said = ops.explain(model)
    assert said.startswith("no layer has a block mask, so all of them run as torch's own: ")
    assert capsys.readouterr().out == said + "\n"


def test_explain_shows_a_dash_for_what_has_not_run():
    table = ops.explain(torch.nn.Sequential(masked_layer()))
    assert table.splitlines()[1].split()[2:] == ["-", "-", "-"]


def test_autotune_tunes_each_pass_once_and_chooses_anew(monkeypatch, tmp_path):
    """A GPU is played: its kernels are the reference's, and each has one configuration."""
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    tuned: list[str] = []

    class PlayedTriton(ReferenceBackend):
        def tune(self, which, layout, geometry, *args):
            assert len(args) == (2 if which == "wgrad" else 3)
            tuned.append(which)
            key = tuning.tuning_key(which, layout, geometry, args[0])
            timings.fastest(key, {"64 tokens": lambda: args[0]})

    monkeypatch.setattr(dispatch, "TRITON", PlayedTriton("triton"))
    monkeypatch.setitem(dispatch.BACKENDS, "triton", dispatch.TRITON)
    layer, x = masked_layer(), torch.randn(2, 32, 9, requires_grad=True)
    layer(x).sum().backward()
    assert not tuned
    generation = timings.generation()
    ops.autotune(True)
    try:
        for _ in range(2):
            layer(x).sum().backward()
        assert tuned == ["fwd", "dgrad", "wgrad"]
        assert timings.generation() == generation + 3
        layer(x.repeat(4, 1, 1)).sum().backward()
        assert tuned == 2 * ["fwd", "dgrad", "wgrad"]
        assert timings.generation() == generation + 3  # nothing that was in use has changed
    finally:
        ops.autotune(False)


@pytest.mark.parametrize("conv", [False, True])
def test_what_cancels_to_rounding_noise_does_not_count_as_wrong(
    conv, monkeypatch, tmp_path, recwarn
):
    """As gradients of attention's key biases do, which are zero but for the order of sums."""
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    layer = BlockSparseConv1d(32, 64, 3, padding=1, block_size=16) if conv else None
    layer = layer or BlockSparseLinear(32, 64, block_size=16)
    layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))
    x = torch.ones(4, 32, 500) if conv else torch.ones(4, 500, 32)  # so dL/dW is noise as well
    x.requires_grad_()
    dy = torch.randn(4, 64, 500) if conv else torch.randn(4, 500, 64)
    dy = dy - dy.mean((0, 2) if conv else (0, 1), keepdim=True)
    layer(x).backward(1e-6 * dy)
    assert layer.bias.grad.abs().max() < 1e-10  # noise indeed
    assert not [w for w in recwarn if "is not used" in str(w.message)]
    choices = json.loads(timings._path().read_text())["choices"].values()
    assert len(choices) == 3 and not any(c["failed"] for c in choices)


def test_a_kernel_that_is_wrong_in_one_entry_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("SNIPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(timings, "_choices", None)
    inner = CpuBackend.wgrad

    def wrong(self, *args):
        dw, db = inner(self, *args)
        dw.view(-1)[dw.abs().argmax()] *= 0.5
        return dw, db

    monkeypatch.setattr(CpuBackend, "wgrad", wrong)
    layer = BlockSparseLinear(32, 64, block_size=16)
    layer.set_block_mask(torch.ones(layer.block_mask_shape, dtype=torch.bool))
    with pytest.warns(UserWarning, match="cpu is not used, dense runs instead"):
        layer(torch.randn(500, 32)).sum().backward()
