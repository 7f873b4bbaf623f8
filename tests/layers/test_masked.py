# SPDX-License-Identifier: Apache-2.0
"""A masked layer in everything that people do with modules."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from sniper import BlockSparseConv1d, BlockSparseLinear
from sniper.layers import layout_versions

B = 8
DATA_PARALLEL_DONE = 17  # neither success nor a way in which Python ends by itself


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = BlockSparseConv1d(16, 24, 3, padding="same", block_size=B)
        self.first = BlockSparseLinear(24, 16, block_size=B)
        self.second = BlockSparseLinear(16, 16, block_size=B)

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


def test_to_another_device_takes_the_layout_along(net):
    net.to("meta")
    assert net.conv.layout.block_mask.device.type == "meta"
    assert net(torch.randn(2, 9, 16, device="meta")).shape == (2, 9, 16)


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


def data_parallel(folder: str) -> None:
    """Runs in a process of its own, which leaves without tidying up.

    Torch may deadlock when it tears a gloo group down with work of a reducer still referenced.
    """
    net, x = set_masks(Net()), torch.randn(2, 9, 16)
    net(x).square().sum().backward()
    expected = gradients(net)
    net.zero_grad()
    store = torch.distributed.FileStore(f"{folder}/store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    ddp = nn.parallel.DistributedDataParallel(net)
    ddp(x).square().sum().backward()
    torch.testing.assert_close(gradients(net), expected)
    set_masks(net, seed=5)
    net.zero_grad()
    ddp(x).square().sum().backward()
    got = gradients(net)
    net.zero_grad()
    net(x).square().sum().backward()
    torch.testing.assert_close(got, gradients(net))
    os._exit(DATA_PARALLEL_DONE)


def test_data_parallel(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=data_parallel, args=(str(tmp_path),)
    )
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == DATA_PARALLEL_DONE


def test_inference_mode_and_no_grad(net, x):
    expected = net(x)
    with torch.inference_mode():
        assert torch.equal(net(x), expected)
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
