# SPDX-License-Identifier: Apache-2.0
"""A masked layer in everything that people do with modules."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from processes import FORK
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from sniper import BlockSparseConv1d, BlockSparseLinear, densify, sparsify
from sniper.layers import layout_versions
from sniper.ops import use_backend
from sniper.optim import Adam

B = 8
DATA_PARALLEL_DONE = 17  # neither success nor a way in which Python ends by itself


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(16, 24, 3, padding="same")
        self.first = nn.Linear(24, 16)
        self.second = nn.Linear(16, 16)
        sparsify(self, B)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2)).transpose(1, 2).relu()
        return self.second(self.first(y).relu())


def set_masks(net: Net, seed: int = 0) -> Net:
    generator = torch.Generator().manual_seed(seed)
    for layer in net.children():
        layer.set_block_mask(torch.rand(layer.block_mask_shape, generator=generator) < 0.5)
    return net


def element_mask(layer: nn.Module) -> Tensor:
    return layer.layout.element_mask().permute(0, 2, 1).reshape(layer.weight.shape)


@pytest.fixture
def net() -> Net:
    return set_masks(Net())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 9, 16)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters()]


def test_setting_a_mask_zeroes_and_keeps_the_rest(net):
    net = Net()
    before = net.first.weight.detach().clone()
    weight = net.first.weight
    mask = torch.tensor([[True, False, True], [False, False, True]])
    net.first.set_block_mask(mask)
    elements = mask.repeat_interleave(B, 0).repeat_interleave(B, 1)
    assert net.first.weight is weight
    assert torch.equal(weight, before * elements)
    assert net.first.density == 0.5
    assert torch.equal(net.first.block_mask, mask)


def test_block_mask_is_a_copy(net):
    mask = net.first.block_mask
    mask.fill_(True)
    assert not net.first.block_mask.all()
    with pytest.warns(UserWarning, match="it is a copy, .*give that to set_block_mask"):
        net.first.block_mask[0] = False
    assert net.first.block_mask[0].any()
    changed = net.first.block_mask.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed[0] = False
        net.first.set_block_mask(changed)
    assert not net.first.block_mask[0].any()
    for plain in (~mask, mask & mask, mask.clone(), mask.float(), mask[0]):
        assert type(plain) is torch.Tensor
    assert torch.equal(pickle.loads(pickle.dumps(mask)), mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(3, 2, dtype=torch.bool), r"expected shape \(2, 3\), got \(3, 2\)"),
        (torch.ones(2, 1, 3, dtype=torch.bool), r"expected shape \(2, 3\), got \(2, 1, 3\)"),
        (torch.ones(2, 3), "expected a bool tensor, got torch.float32"),
        ([[True]], "expected a bool tensor, got list"),
    ],
)
def test_bad_masks(mask, words):
    layer = Net().first
    with pytest.raises(ValueError, match=words):
        layer.set_block_mask(mask)
    assert layer.block_mask is None


def test_a_state_dict_is_the_parents(net):
    plain = nn.Linear(24, 16)
    assert net.first.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(net.first.state_dict())
    assert torch.equal(plain.weight, net.first.weight)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_zeroes_pruned_blocks_again(net, assign):
    dense = {n: torch.randn(p.shape) for n, p in net.named_parameters()}
    net.load_state_dict({n: v.clone() for n, v in dense.items()}, assign=assign)
    for name, layer in net.named_children():
        expected = dense[f"{name}.weight"] * element_mask(layer)
        assert torch.equal(layer.weight, expected)
    assert net.conv.weight.permute(0, 2, 1).is_contiguous()


def round_trip(net: Net) -> Net:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), round_trip]
)
def test_copies_are_equal_and_independent(net, x, copied):
    expected = net(x)
    twin = copied(net)
    assert torch.equal(twin(x), expected)
    assert twin.conv.layout.handle != net.conv.layout.handle
    for layer in net.children():
        layer.set_block_mask(~layer.block_mask)
    assert torch.equal(twin(x), expected)
    twin(x).sum().backward()
    for layer in twin.children():
        assert not layer.weight.grad[~element_mask(layer)].any()


def test_average_of_models(net, x):
    average = AveragedModel(net)
    average.update_parameters(net)
    torch.testing.assert_close(average(x), net(x))


def test_an_average_follows_its_model_into_denser_masks(net, x):
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(net)
    expected = {n: p.detach().clone() for n, p in net.named_parameters()}
    for _ in range(2):
        for layer in net.children():
            layer.set_block_mask(layer.block_mask | (torch.rand(layer.block_mask_shape) < 0.5))
            layer.weight.data = torch.randn_like(layer.weight) * element_mask(layer)
        average.update_parameters(net)
        for name, p in net.named_parameters():
            expected[name] = (expected[name] + p.detach()) / 2
        # Weights that the copied masks do not have count too.
        assert expected["first.weight"][~element_mask(average.module.first)].any()
        wanted = functional_call(densify(copy.deepcopy(net)), expected, (x,))
        torch.testing.assert_close(average(x), wanted)
        with use_backend("reference"):  # which would read active blocks only
            torch.testing.assert_close(average(x), wanted)
    saved = copy.deepcopy(average.state_dict())
    average.load_state_dict(saved)
    torch.testing.assert_close(average(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(net, x, dtype):
    expected = net(x)
    net.to(dtype)
    y = net(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.sum().backward()
    for layer in net.children():
        assert layer.weight.grad.dtype == dtype
        assert not layer.weight.grad[~element_mask(layer)].any()


def test_on_the_meta_device_masks_keep_their_values(net, x):
    """torch's way to load big models: a skeleton without memory, whose weights come later."""
    skeleton = copy.deepcopy(net).to("meta")
    assert skeleton(torch.randn(2, 9, 16, device="meta")).shape == (2, 9, 16)
    skeleton.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(skeleton(x), net(x))
    empty = copy.deepcopy(net).to("meta").to_empty(device="cpu")
    empty.load_state_dict(net.state_dict())
    assert torch.equal(empty(x), net(x))


def test_a_mask_that_is_put_on_without_memory():
    layer = BlockSparseLinear(16, 16, block_size=B, device="meta")
    layer.set_block_mask(torch.eye(2).bool())
    layer.to_empty(device="cpu")
    layer.load_state_dict(BlockSparseLinear(16, 16, block_size=B).state_dict())
    x = torch.randn(3, 16)
    mask = torch.eye(2).bool().repeat_interleave(B, 0).repeat_interleave(B, 1)
    assert torch.allclose(layer(x), F.linear(x, layer.weight * mask, layer.bias), atol=1e-6)
    assert torch.equal(layer.weight != 0, mask)


def test_a_weight_that_was_exchanged_is_refused():
    """Kernels would write where the mask says, outside its memory."""
    layer = BlockSparseLinear(16, 32, block_size=B)
    layer.set_block_mask(torch.eye(4, 2).bool())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.weight.data, layer.bias.data = torch.ones(32, 16)[:16], torch.ones(16)
    with pytest.raises(ValueError, match=r"weight: expected \[32, 16\] on cpu, .*got \[16, 16\]"):
        optimizer.step()


@pytest.mark.parametrize("saved", ["no", "alone", "with the model"])
def test_an_average_that_was_saved_takes_all_weights(net, x, saved):
    average = AveragedModel(net)
    average.update_parameters(net)
    if saved == "alone":
        average = pickle.loads(pickle.dumps(average))
    elif saved == "with the model":
        net, average = pickle.loads(pickle.dumps((net, average)))
    for layer in (net.conv, net.first):
        layer.set_block_mask(torch.ones(layer.block_mask_shape).bool())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    average.update_parameters(net)
    plain = densify(copy.deepcopy(average.module))
    torch.testing.assert_close(average(x), plain(x))


def test_an_average_over_models_with_other_masks():
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        layer = BlockSparseLinear(16, 16, block_size=B)
        mask = torch.zeros(2, 2).bool()
        mask[:, seed] = True
        layer.set_block_mask(mask)
        models.append(layer)
    average = AveragedModel(models[0])
    for model in models:
        average.update_parameters(model)
    rows = torch.randn(5, 16)
    wanted = (models[0](rows) + models[1](rows)) / 2
    torch.testing.assert_close(average(rows), wanted)


def test_an_ensemble_has_each_members_mask():
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        layer = BlockSparseLinear(16, 16, block_size=B)
        layer.set_block_mask(torch.tensor([[seed != 0, seed != 1], [seed != 2, True]]))
        models.append(layer)
    params, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    rows = torch.randn(5, 16)

    def one(params, buffers):
        return torch.func.functional_call(skeleton, (params, buffers), (rows,))

    got = torch.vmap(one)(params, buffers)
    torch.testing.assert_close(got, torch.stack([m(rows) for m in models]))

    def loss(params, buffers):
        return one(params, buffers).square().sum()

    grads = torch.vmap(torch.func.grad(loss))(params, buffers)["weight"]
    for grad, model in zip(grads, models, strict=True):
        model(rows).square().sum().backward()
        active = element_mask(model)
        torch.testing.assert_close(grad[active], model.weight.grad[active])


def test_graphs_for_files_are_of_torchs_functions(tmp_path):
    """Else the file would mean the mask of whatever model the loading process has."""
    rows, wanted = torch.randn(5, 16), {}
    for kind, average in itertools.product(("export", "strict export", "trace"), (False, True)):
        layer = BlockSparseLinear(16, 16, block_size=B).eval()
        layer.set_block_mask(torch.eye(2).bool())
        if average:  # of models with other masks, which nobody has called yet
            layer, other = AveragedModel(layer), layer
            other.set_block_mask(torch.eye(2).flip(0).bool())
            nn.init.normal_(other.weight)
            for _ in range(2):
                layer.update_parameters(other)
        path = tmp_path / f"{kind}, {average}"
        if kind != "trace":
            torch.export.save(torch.export.export(layer, (rows,), strict=kind != "export"), path)
        else:
            torch.jit.save(torch.jit.trace(layer, rows), str(path))
        wanted[path.name] = layer(rows)
        if average:
            plain = densify(copy.deepcopy(layer.module))
            torch.testing.assert_close(wanted[path.name], plain(rows))
    program = (
        "import sys, torch; x, found = torch.load('rows'), {}\n"
        "for name in sys.argv[1:]:\n"
        "    traced = name.startswith('trace')\n"
        "    m = torch.jit.load(name) if traced else torch.export.load(name).module()\n"
        "    found[name] = m(x)\n"
        "torch.save(found, 'found')"
    )
    torch.save(rows, tmp_path / "rows")
    subprocess.run([sys.executable, "-c", program, *wanted], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "found"), wanted)


def test_a_model_is_loaded_where_nothing_has_memory_or_versions(net, x, tmp_path):
    wanted = net(x)
    torch.save(net, tmp_path / "model")
    with FakeTensorMode():
        fake = torch.load(tmp_path / "model", weights_only=False)
        assert fake.first.weight.shape == net.first.weight.shape
    with torch.inference_mode():
        loaded = torch.load(tmp_path / "model", weights_only=False)
        assert torch.equal(loaded(x), wanted)
        loaded.first.set_block_mask(torch.ones(loaded.first.block_mask_shape).bool())


@pytest.mark.parametrize("fused", [False, True])
def test_moments_follow_a_convolution_into_its_masks_memory_order(fused):
    """Fused optimizers walk weight, gradient and moments as flat memory."""
    ends = []
    for masked in (False, True):
        torch.manual_seed(0)
        layer = BlockSparseConv1d(16, 16, 3, padding=1, block_size=B)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, fused=fused)
        for step in range(4):
            if step == 2 and masked:
                layer.set_block_mask(torch.ones(layer.block_mask_shape).bool())
            generator = torch.Generator().manual_seed(step)
            layer(torch.randn(2, 16, 9, generator=generator)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_is_torchs(net, x, dtype):
    net, x = net.to(dtype), x.to(dtype)
    plain = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 16)).to(dtype)
    plain[0].load_state_dict(net.first.state_dict())
    plain[1].load_state_dict(net.second.state_dict())
    rows = torch.randn(5, 24, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = net.second(net.first(rows)), plain(rows)
        conv = net(x)
    wanted = torch.bfloat16 if dtype == torch.float32 else torch.float64
    assert y.dtype == expected.dtype == conv.dtype == wanted
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    y.sum().backward(), expected.sum().backward()
    assert net.first.weight.grad.dtype == dtype
    mask = element_mask(net.first)
    torch.testing.assert_close(
        net.first.weight.grad, plain[0].weight.grad * mask, rtol=0.05, atol=0.05
    )


def test_compiled_equals_eager_and_a_new_mask_compiles_nothing(net, x):
    # Here, since the processes of `test_data_parallel` load this file and have no use for it.
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    compiled(x)
    for seed in (1, 2, 3):
        set_masks(net, seed)
        for p in net.parameters():
            torch.nn.init.normal_(p.data)
        set_masks(net, seed)
        net.zero_grad()
        y = compiled(x)
        y.square().sum().backward()
        got = gradients(net)
        net.zero_grad()
        expected = net(x)
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(got, gradients(net))
    assert counter.frame_count == 1


def test_compiled_with_changing_lengths(net):
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for t in (5, 9, 13, 2):
        x = torch.randn(2, t, 16)
        torch.testing.assert_close(compiled(x), net(x))


def test_gradient_checkpointing(net, x):
    net(x).square().sum().backward()
    expected = gradients(net)
    for reentrant in (False, True):
        net.zero_grad()
        x.requires_grad_()
        checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(gradients(net), expected)


def test_functional_call(net, x):
    params = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    y = functional_call(net, params, (x,))
    torch.testing.assert_close(y, net(x))
    grads = torch.autograd.grad(y.sum(), list(params.values()))
    net(x).sum().backward()
    torch.testing.assert_close(list(grads), gradients(net))
    doubled = functional_call(net.second, {"weight": 2 * params["second.weight"]}, (x,))
    torch.testing.assert_close(doubled - net.second.bias, 2 * (net.second(x) - net.second.bias))


def data_parallel(rank: int, folder: str) -> None:
    """One of two processes, which leaves without tidying up.

    Torch may deadlock when it tears a gloo group down with work of a reducer still referenced.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, halves = set_masks(Net()), torch.randn(2, 3, 9, 16)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ddp = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-2)
    alone = copy.deepcopy(net)
    twin = torch.optim.Adam(alone.parameters(), lr=1e-2)
    for seed in (0, 5, 6):  # other masks under the same reducer
        set_masks(net, seed), set_masks(alone, seed)
        optimizer.zero_grad(), twin.zero_grad()
        ddp(halves[rank]).square().mean().backward()
        alone(halves.flatten(0, 1)).square().mean().backward()
        torch.testing.assert_close(gradients(net), gradients(alone))
        for layer in net.children():
            assert not layer.weight.grad[~element_mask(layer)].any()
        optimizer.step(), twin.step()
    total = torch.stack([p.detach().sum() for p in net.parameters()])
    both = [torch.empty_like(total) for _ in range(2)]
    torch.distributed.all_gather(both, total)
    assert torch.equal(*both)
    os._exit(DATA_PARALLEL_DONE)


def test_data_parallel_on_two_processes(tmp_path):
    processes = [
        FORK.Process(target=data_parallel, args=(rank, str(tmp_path))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [DATA_PARALLEL_DONE] * 2


def test_inference_mode_and_no_grad(net, x):
    expected = net(x)
    with torch.inference_mode():
        assert torch.equal(net(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x)
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    with torch.no_grad():
        y = net(x)
    assert torch.equal(y, expected) and not y.requires_grad


def test_versions_change_with_every_mask():
    model = nn.Sequential(BlockSparseLinear(16, 16, block_size=B), nn.ReLU(), nn.Linear(16, 16))
    seen = [layout_versions(model)]
    for mask in (torch.eye(2).bool(), torch.ones(2, 2).bool(), None, torch.eye(2).bool()):
        model[0].set_block_mask(mask)
        seen.append(layout_versions(model))
    assert seen[0] == seen[3] == ((0, 0),)  # without a mask nothing of it is launched
    assert len(set(seen)) == 4
    assert layout_versions(model) == seen[-1] != layout_versions(copy.deepcopy(model))


@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.Conv1d(16, 16, 3)], ids=["linear", "conv"])
def test_a_mask_between_forward_and_backward_is_told(layer):
    model = nn.Sequential(layer)
    sparsify(model, B)
    masks = [torch.ones(model[0].block_mask_shape, dtype=torch.bool) for _ in range(2)]
    masks[1][0] = False
    model[0].set_block_mask(masks[0])
    x = torch.randn(2, 16, 16, requires_grad=True)
    y = model(x)
    model[0].set_block_mask(masks[0])  # changes nothing
    y.sum().backward(retain_graph=True)
    model[0].set_block_mask(masks[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_mask_that_is_put_on_in_inference_mode_can_be_trained_with():
    for module in (nn.Linear(16, 16), nn.Conv1d(16, 16, 3)):
        model = nn.Sequential(module)
        sparsify(model, B)
        with torch.inference_mode():
            model[0].set_block_mask(torch.rand(model[0].block_mask_shape) < 0.5)
        optimizer = Adam(model.parameters())
        for _ in range(2):
            model(torch.randn(2, 16, 16)).square().sum().backward()
            optimizer.step()
            model[0].set_block_mask(torch.rand(model[0].block_mask_shape) < 0.5)


def test_gradients_of_several_results_at_once():
    net = set_masks(Net())
    x = torch.randn(2, 5, 16, requires_grad=True)
    y = net(x)
    directions = torch.randn(3, *y.shape)
    (together,) = torch.autograd.grad(y, x, directions, retain_graph=True, is_grads_batched=True)
    apart = [torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in directions]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-4, atol=1e-5)


def test_what_others_give_to_a_masked_weight_is_masked_wherever_it_went():
    """A loss that reads a weight itself; after a copy, a loaded weight, and without a mask."""
    layer = BlockSparseLinear(4, 4, block_size=2)
    layer.set_block_mask(torch.tensor([[True, False], [False, True]]))

    def grad(layer):
        layer.weight.grad = None
        (layer(torch.ones(1, 4)).sum() + layer.weight.sum()).backward()
        return layer.weight.grad

    wanted = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1) * 2
    assert torch.equal(grad(layer), wanted) and torch.equal(grad(layer), wanted)
    assert torch.equal(grad(copy.deepcopy(layer)), wanted)
    layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
    assert torch.equal(grad(layer), wanted)
    # Whoever wants gradients of gradients has them, too.
    (again,) = torch.autograd.grad(layer.weight.exp().sum(), layer.weight, create_graph=True)
    again.sum().backward()
    layer.set_block_mask(None)
    assert torch.equal(grad(layer), torch.full((4, 4), 2.0))


def test_what_others_give_is_masked_of_a_weight_that_was_frozen_when_its_mask_came():
    layer = BlockSparseLinear(4, 4, block_size=2)
    layer.weight.requires_grad_(False)
    layer.set_block_mask(torch.tensor([[True, False], [False, True]]))
    assert not layer.weight.requires_grad
    layer.weight.requires_grad_(True)
    (layer(torch.ones(1, 4)).sum() + layer.weight.sum()).backward()
    blocks = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(layer.weight.grad, 2 * blocks)


def test_whoever_fills_pruned_blocks_later_is_noticed():
    layer = BlockSparseLinear(4, 4, block_size=2)
    layer.set_block_mask(torch.tensor([[True, False], [False, True]]))
    seen = []
    for step in range(16):
        layer.weight.grad = None
        loss = layer(torch.ones(1, 4)).sum()
        (loss if step < 5 else loss + layer.weight.sum()).backward()
        seen.append(bool(layer.weight.grad[:2, 2:].any()))
    assert seen == [False] * 5 + [True] * 2 + [False] * 9  # the eighth gradient is looked at


def test_an_overflow_is_not_taken_for_somebody_who_fills_pruned_blocks():
    layer = BlockSparseLinear(4, 4, block_size=2)
    layer.set_block_mask(torch.tensor([[True, False], [False, True]]))
    (layer(torch.ones(1, 4)) * torch.nan).sum().backward()
    assert layer.weight.grad[:2, :2].isnan().all() and not layer.weight.grad[:2, 2:].any()
    (hook,) = layer.weight._backward_hooks.values()
    grad = torch.ones(4, 4)
    layer.set_block_mask(torch.tensor([[True, False], [True, True]]))  # looks anew
    assert hook(torch.tril(grad)) is None and hook(grad) is not None
