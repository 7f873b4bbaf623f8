# SPDX-License-Identifier: Apache-2.0
"""sparsify and densify."""

from __future__ import annotations

import copy

import pytest
import torch
from dropin import (
    check_against_masked_dense,
    check_sniper_trains,
    espnet_fastspeech2,
    espnet_loss,
)
from safetensors.torch import load_file, save_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

from sniper import BlockSparseConv1d, BlockSparseLinear, densify, sparsify
from sniper.layers import Dropout
from sniper.ops import dispatch

B = 8


def reasons(model: nn.Module, **kwargs) -> dict[str, str]:
    return {m.name: m.reason for m in sparsify(model, B, **kwargs).modules}


class Conv1D(nn.Module):
    """As Hugging Face's: a linear layer with weight `[in, out]`."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))


class Special(nn.Linear):
    """A subclass that may do anything in its forward."""


class Bare(nn.Module):
    """A parameter of two dimensions and no layer around it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 16))
        self.vector = nn.Parameter(torch.zeros(16))


class LlamaRMSNorm(nn.Module):
    """No class of torch's, known by its name."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 16))


def test_reasons():
    replaced = nn.Linear(16, 16)
    replaced.forward = lambda x: x
    tied = nn.Linear(16, 16)
    embedding = nn.Embedding(16, 16)
    tied.weight = embedding.weight
    model = nn.ModuleDict(
        {
            "good": nn.Linear(16, 24),
            "conv": nn.Conv1d(16, 8, 3),
            "odd": nn.Linear(16, 20),
            "stride": nn.Conv1d(16, 16, 3, stride=2),
            "groups": nn.Conv1d(16, 16, 3, groups=16),
            "two_d": nn.Conv2d(16, 16, 3),
            "parametrized": parametrizations.weight_norm(nn.Linear(16, 16)),
            "tied": tied,
            "embedding": embedding,
            "special": Special(16, 16),
            "transposed": Conv1D(16, 16),
            "replaced": replaced,
            "attention": nn.MultiheadAttention(16, 2),
            "empty": nn.Linear(16, 8, bias=False),
            "lstm": nn.LSTM(16, 16),
            "bilinear": nn.Bilinear(16, 16, 8),
            "bare": Bare(),
            "ln": nn.LayerNorm((16, 16)),
            "scale": LlamaRMSNorm(),
        }
    )
    model["empty"].weight = nn.Parameter(torch.zeros(0, 16))
    assert reasons(model) == {
        "good": "",
        "conv": "",
        "odd": "20 x 16 does not divide by 8",
        "stride": "stride 2",
        "groups": "groups 16",
        "parametrized": "its weight is computed (weight norm or another parametrization)",
        "tied": "its weight is tied to another module's",
        "two_d": "class Conv2d is not supported",
        "special": "class Special has its own ways with the weight",
        "transposed": "its weight is transposed, [in, out]",
        "replaced": "its forward is replaced",
        "attention": "its projections are no Linear modules",
        "attention.out_proj": (
            "class NonDynamicallyQuantizableLinear has its own ways with the weight"
        ),
        "empty": "0 x 16 does not divide by 8",
        "embedding": "left out by its type: embedding",
        "lstm": "class LSTM is not supported",
        "bilinear": "class Bilinear is not supported",
        "bare": "class Bare has its own ways with the weight",
        "ln": "left out by its type: normalisation layer",
        "scale": "left out by its type: normalisation layer",
    }
    assert type(model["good"]) is BlockSparseLinear
    assert type(model["conv"]) is BlockSparseConv1d
    assert type(model["odd"]) is nn.Linear


def test_include_and_exclude():
    def net() -> nn.Module:
        layers = {"encoder": nn.Linear(16, 16), "decoder": nn.Linear(16, 16)}
        return nn.ModuleDict({**layers, "decoder_out": nn.Linear(16, 16)})

    assert sparsify(net(), B, include=["dec*"]).taken == ("decoder", "decoder_out")
    assert sparsify(net(), B, exclude=["dec"]).taken == ("encoder",)
    assert sparsify(net(), B, exclude=["*_out"]).taken == ("encoder", "decoder")
    report = sparsify(net(), B, include=["dec*"], exclude=["out"])
    assert [m.reason for m in report.modules] == ["not included", "", "excluded by 'out'"]
    with pytest.raises(ValueError, match="encoder: excluded by ''"):
        sparsify(net(), B, exclude=[""])  # fits every name
    for kwargs in ({"include": "dec*"}, {"exclude": "dec"}):
        with pytest.raises(ValueError, match="expected a sequence of patterns"):
            sparsify(net(), B, **kwargs)


def test_patterns_that_match_nothing():
    net = nn.ModuleDict({"stack": nn.Sequential(nn.Linear(16, 16))})
    for what in ("include", "exclude"):
        expected = f"{what}: expected patterns that match .*got 'decoder': patterns are matched"
        with pytest.raises(ValueError, match=expected):
            sparsify(net, B, **{what: ["stack.*", "decoder"][what == "exclude" :]})
    with pytest.raises(ValueError, match=r"got 'stac\?': it matches only modules that hold others"):
        sparsify(net, B, exclude=["stac?"])
    assert type(net["stack"][0]) is nn.Linear
    assert sparsify(net, B, exclude=["norm", "embed", "*.bias"]).taken == ("stack.0",)


def test_shares_count_every_matrix():
    """Of an LSTM, an attention with projections of other sizes, an embedding and a bare table."""
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(16, 16, bias=False),
            "lstm": nn.LSTM(16, 8, num_layers=2, bidirectional=True, proj_size=4),
            "attention": nn.MultiheadAttention(16, 2, bias=False, kdim=8, vdim=24),
            "embedding": nn.Embedding(100, 16),
            "bare": Bare(),
        }
    )
    report = sparsify(model, B)
    rows = {m.name: m for m in report.modules}
    matrices = {n: [p for p in m.parameters() if p.dim() > 1] for n, m in model.items()}
    for name in ("linear", "lstm", "bare", "embedding"):
        assert rows[name].numel == sum(p.numel() for p in matrices[name]), name
    assert rows["attention"].numel == 16 * 16 + 16 * 8 + 16 * 24
    assert rows["embedding"].flops == 0
    flops = 2 * sum(p.numel() for n, ps in matrices.items() if n != "embedding" for p in ps)
    assert report.flop_share == pytest.approx(2 * 16 * 16 / flops)
    assert report.parameter_share == 16 * 16 / sum(p.numel() for p in model.parameters())
    assert "32x16 and 11 more" in str(report)


def test_report_as_a_table():
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 20), nn.LayerNorm(20))
    report = sparsify(model, B)
    assert str(report).splitlines() == [
        "module  class   weight  parameters  FLOPs",
        "0       Linear  24x16   40.5%       44.4%  block-sparse, 8",
        "2       Linear  20x24   50.6%       55.6%  20 x 24 does not divide by 8",
        "1 modules with 40.5% of 948 parameters and 44.4% of the FLOPs",
        "(FLOPs: of the modules listed, per token of a Linear and per frame of a convolution)",
    ]


@pytest.mark.parametrize(
    ("module", "frames_in"),
    [
        (nn.Linear(16, 24, bias=False), None),
        (nn.Conv1d(16, 24, 3, padding=1, bias=False), 10),
        (nn.Conv1d(16, 32, 5, padding=4, dilation=2, groups=8, bias=False), 10),
        (nn.ConvTranspose1d(16, 24, 4, stride=2, bias=False), 10),
    ],
)
def test_flops_are_those_that_torch_counts(module, frames_in):
    report = sparsify(nn.ModuleDict({"it": module, "other": nn.Linear(8, 8)}), B)
    flops = next(m.flops for m in report.modules if m.name == "it")
    densify(module)
    x = torch.randn(10, 16) if frames_in is None else torch.randn(1, 16, frames_in)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert flops * 10 == counter.get_total_flops()  # ten tokens or frames
    assert report.flop_share == pytest.approx(
        sum(m.flops for m in report.modules if m.taken) / (flops + 2 * 64)
    )
    taken = sum(m.numel for m in report.modules if m.taken)
    assert report.parameter_share == pytest.approx(taken / (module.weight.numel() + 64 + 8))


def test_nothing_eligible():
    with pytest.raises(
        ValueError, match="(?s)at least one eligible.*0: 3 x 4 does not divide by 8"
    ):
        sparsify(nn.Sequential(nn.Linear(4, 3)), B)
    with pytest.raises(ValueError, match="no such layer"):
        sparsify(nn.ReLU(), B)
    with pytest.raises(ValueError, match=r"\(the model\): 3 x 4"):
        sparsify(nn.Linear(4, 3), B)


@pytest.mark.parametrize("block_size", [0, -8, 8.0, True, "8", None])
def test_bad_block_size(block_size):
    with pytest.raises(ValueError, match="block_size: expected a whole number >= 1"):
        sparsify(nn.Linear(16, 16), block_size)


def test_a_model_that_has_no_weights_yet():
    with pytest.raises(ValueError, match="run a batch first for 0.weight"):
        sparsify(nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 16)), B)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), ("cpu", torch.bfloat16), ("meta", torch.float16)]
)
def test_devices_and_dtypes_stay(device, dtype):
    layers = (nn.Linear(16, 16), nn.Conv1d(16, 8, 3, padding=1))
    model = nn.Sequential(*layers).to(device=device, dtype=dtype)
    assert len(sparsify(model, B).taken) == 2
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, dtype)}
    y = model[1](model[0](torch.randn(2, 16, 16, device=device, dtype=dtype)))
    assert (y.device.type, y.dtype, tuple(y.shape)) == (device, dtype, (2, 8, 16))


def test_everything_but_the_class_stays():
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(16, 8, 3, padding=1))
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append(1))
    model[0].weight.requires_grad_(False)
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    params, modules = list(model.parameters()), list(model.modules())
    sparsify(model, B)
    assert all(p is q for p, q in zip(params, model.parameters(), strict=True))
    assert all(p is q for p, q in zip(modules, model.modules(), strict=True))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert [p.requires_grad for p in params] == [False, True, True, True]
    assert model[0].training and not model[1].training
    model[0](torch.randn(2, 16))
    assert calls == [1]


def test_a_model_that_is_a_layer_itself():
    layer = nn.Linear(16, 16)
    assert sparsify(layer, B).taken == ("",)
    assert type(layer) is BlockSparseLinear


def test_twice():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    first = sparsify(model, B)
    mask = torch.tensor([[True, False], [False, True]])
    model[0].set_block_mask(mask)
    second = sparsify(model, B)
    assert first.taken == second.taken == ("0",)
    assert torch.equal(model[0].block_mask, mask)
    with pytest.raises(ValueError, match="expected 8, which 0 has, got 4"):
        sparsify(model, 4)


def test_shared_modules_stay_shared():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert sparsify(model, B).taken == ("0",)
    assert model[0] is model[2]
    model[0].set_block_mask(torch.tensor([[True, False], [False, True]]))
    model(torch.randn(2, 16)).sum().backward()
    assert not shared.weight.grad[:8, 8:].any()


def test_densify():
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(16, 8, 3, padding=1))
    attributes = [set(m.__dict__) for m in model]
    sparsify(model, B)
    model[0].set_block_mask(torch.tensor([[True, False], [False, True]]))
    model[1].set_block_mask(torch.rand(1, 3, 2) < 0.5)
    x = torch.randn(2, 16, 16)
    expected = model(x)
    before = copy.deepcopy(model.state_dict())
    assert densify(model) is model
    assert [type(m) for m in model] == [nn.Linear, nn.Conv1d]
    assert [set(m.__dict__) for m in model] == attributes
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in before)
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert model[0].weight.grad[:8, 8:].any()  # nothing is masked any more
    assert sparsify(model, 4).taken == ("0", "1")


def test_fast_dropout_and_back():
    ours = Dropout(0.3)  # a model may have it already
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.AlphaDropout(0.5), ours)
    assert sparsify(model, B).dropouts == 0
    assert type(model[1]) is nn.Dropout
    report = sparsify(model, B, fast_dropout=True)
    assert report.dropouts == 1 and str(report).endswith("1 dropouts draw from a counter")
    assert [type(m) for m in model[1:]] == [Dropout, nn.AlphaDropout, Dropout]
    assert model[1].p == 0.5
    zeros = (model[1](torch.ones(100, 100)) == 0).float().mean()
    assert 0.45 < zeros < 0.55
    assert sparsify(model, B, fast_dropout=True).dropouts == 0
    densify(model)
    assert [type(m) for m in model[1:]] == [nn.Dropout, nn.AlphaDropout, Dropout]
    assert set(vars(model[1])) == set(vars(nn.Dropout(0.5)))


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_built_before(fused):
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(16, 8, 3, padding=1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        mask = torch.tensor([[True, False], [False, True]])
        element = mask.repeat_interleave(B, 0).repeat_interleave(B, 1)
        if sparse:
            sparsify(model, B)
            model[0].set_block_mask(mask)
            model[1].set_block_mask(torch.ones(1, 3, 2, dtype=torch.bool))
        else:
            model[0].weight.data *= element
            model[0].weight.register_hook(lambda grad, m=element: grad * m)
        for i in range(5):
            x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert not results[0][0][:8, 8:].any()


def test_transformer_encoder_and_its_fast_path(monkeypatch):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    settings = [(m.activation_relu_or_gelu, set(vars(m))) for m in model.layers]
    taken = sparsify(model, B).taken
    assert taken == ("layers.0.linear1", "layers.0.linear2", "layers.1.linear1", "layers.1.linear2")
    plain = copy.deepcopy(model)
    for name in taken:
        module = model.get_submodule(name)
        module.set_block_mask(torch.rand(module.block_mask_shape) < 0.5)
    plain.load_state_dict(model.state_dict())
    densify(plain)
    assert [(m.activation_relu_or_gelu, set(vars(m))) for m in plain.layers] == settings
    assert plain.use_nested_tensor
    x = torch.randn(3, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    products, choose = [], dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *args: products.append(1) or choose(*args))
    fused = []
    monkeypatch.setattr(
        torch,
        "_transformer_encoder_layer_fwd",
        lambda *args, real=torch._transformer_encoder_layer_fwd: fused.append(1) or real(*args),
    )

    def check(**mask) -> None:
        products.clear(), fused.clear()
        got, wanted = model(x, **mask), plain(x, **mask)
        real = ~padding if mask else torch.ones_like(padding)
        torch.testing.assert_close(got[real], wanted[real], rtol=1e-4, atol=1e-5)
        assert len(products) == 4
        # Where the plain model takes torch's fused kernel, ours runs its own layers.
        assert len(fused) == (0 if torch.is_grad_enabled() else 2)

    for mode in (True, False):
        model.train(mode), plain.train(mode)
        check()
        check(src_key_padding_mask=padding)
    with torch.no_grad():
        check()
        check(src_key_padding_mask=padding)


@pytest.mark.parametrize("stack", ["transformer", "conformer"])
def test_espnets_fastspeech2(stack):
    pytest.importorskip("espnet2.tts.fastspeech2", reason="needs the espnet package")
    report = check_against_masked_dense(*espnet_fastspeech2(stack), espnet_loss)
    assert report.flop_share > 0.8
    assert "encoder.encoders.0.feed_forward.w_1" in report.taken
    assert report.attentions == 2
    check_sniper_trains(*espnet_fastspeech2(stack), espnet_loss)


def test_densified_weights_as_safetensors(tmp_path):
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv1d(16, 8, 3, padding=1), nn.Flatten(), nn.Linear(80, 16))

    model, x = net(), torch.randn(2, 16, 10)
    sparsify(model, B)
    for layer in (model[0], model[2]):
        layer.set_block_mask(torch.rand(layer.block_mask_shape) < 0.5)
    expected = model(x)
    save_model(densify(model), tmp_path / "it.safetensors")
    other = net()
    other.load_state_dict(load_file(tmp_path / "it.safetensors"))
    torch.testing.assert_close(other(x), expected)
    assert all(p.is_contiguous() for p in other.parameters())


def test_densify_lifts_the_mask_of_a_layer_that_was_parametrized_since():
    model = nn.Sequential(nn.Linear(16, 16))
    sparsify(model, B)
    model[0].set_block_mask(torch.tensor([[True, False], [False, True]]))
    parametrizations.weight_norm(model[0])
    with pytest.warns(UserWarning, match="0 is dense now and stays a Parametrized.*: to get its"):
        densify(model)
    parametrize.remove_parametrizations(model[0], "weight")
    nn.init.ones_(model[0].weight)
    torch.testing.assert_close(model(torch.ones(1, 16)), 16 + model[0].bias[None])
