# SPDX-License-Identifier: Apache-2.0
"""Adam over active blocks against torch's Adam on gradients that are zero in pruned ones."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.weak import TensorWeakRef

import sniper
from sniper import _C, BlockSparseConv1d, BlockSparseLinear, LearningRateScale, Sniper, ops
from sniper.layers import zeros
from sniper.ops import gradients
from sniper.ops.backends import CPU
from sniper.ops.geometry import as_matrix
from sniper.ops.layout import weight_mask
from sniper.optim import Adam, AdamW

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    {"amsgrad": True, "betas": (0.4, 0.99), "eps": 1e-6},
]


class Model(nn.Module):
    """A convolution and a linear layer with masks, and dense parameters of odd sizes."""

    def __init__(self):
        super().__init__()
        self.conv = BlockSparseConv1d(32, 64, 3, padding=1, block_size=16)
        self.linear = BlockSparseLinear(64, 48, block_size=16)
        self.norm = nn.LayerNorm(48)
        self.out = nn.Linear(48, 5)

    def forward(self, x):
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.norm(torch.relu(self.linear(y)))).square().mean()


def make_model(density=0.3, seed=0):
    torch.manual_seed(seed)
    model = Model()
    for layer in (model.conv, model.linear):
        layer.set_block_mask(torch.rand(layer.block_mask_shape) < density)
    return model


def batch(step):
    return torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(step))


def train(model, optimizer, steps, clip=None, first=0):
    """As a loop of a user of torch has it; accumulates two gradients a step."""
    for step in range(first, first + steps):
        for half in range(2):
            model(batch(2 * step + half)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_close(got, wanted, relative=1e-7):
    # Without fused multiply-add the bits are others from the first update on.
    relative = max(relative, 1e-4 if _C.cpu.instruction_set() == "portable" else 0)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).norm() <= relative * b.norm().clamp_min(1e-12)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_torchs_adam(options, density):
    ours, theirs = make_model(density), make_model(density)
    train(ours, Adam(ours.parameters(), lr=3e-3, **options), 30)
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=3e-3, fused=True, **options), 30)
    assert_close(weights(ours), weights(theirs))
    for layer in (ours.conv, ours.linear):
        mask = weight_mask(layer.layout, layer.weight.dim())
        assert not layer.weight[~mask].any()


@pytest.mark.skipif(_C.cpu.instruction_set() == "portable", reason="torch fuses, SSE2 cannot")
def test_bits_of_torchs_kernel():
    """One update of the same gradients, on the instruction set that torch uses too."""
    torch.manual_seed(0)
    values, grads = torch.randn(2, 1000), torch.randn(4, 2, 1000)
    results = []
    for cls in (Adam, torch.optim.Adam):
        p = nn.Parameter(values.clone())
        optimizer = cls([p], lr=1e-2, weight_decay=0.01, fused=True)
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()
        state = optimizer.state[p]
        results.append([p.detach(), state["exp_avg"], state["exp_avg_sq"]])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 3])
def test_clips_and_clears_in_its_visit(count):
    before = torch.get_num_threads()
    ours, theirs = make_model(), make_model()
    torch.set_num_threads(count)
    try:
        optimizer = Adam(ours.parameters(), lr=3e-3, max_norm=0.01, clear=True)
        # The same kernels for both, since each number of threads makes choices of its own.
        with ops.use_backend("cpu"):
            for step in range(20):
                for half in range(2):
                    ours(batch(2 * step + half)).backward()
                optimizer.step()
                assert ours.out.weight.grad is None
                assert not ours.conv.weight.grad.any()
    finally:
        torch.set_num_threads(before)
    with ops.use_backend("cpu"):
        train(theirs, torch.optim.Adam(theirs.parameters(), lr=3e-3, fused=True), 20, clip=0.01)
    assert_close(weights(ours), weights(theirs), 1e-6)


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_gradients_become_zero_where_they_lie(max_norm, clear):
    """As by `zero_grad(set_to_none=False)`, of torch's functions' parameters too."""
    sides = []
    for in_place in (True, False):
        model = make_model()
        model.out.double()
        model.norm.register_forward_hook(lambda module, args, y: y.double())
        optimizer = Adam(model.parameters(), lr=3e-3, max_norm=max_norm, clear=clear and in_place)
        optimizer.zero_in_place = in_place
        for step in range(4):
            model(batch(step)).backward()
            grads = [p.grad for p in model.parameters()]
            before = [(g.data_ptr(), g._version) for g in grads]
            optimizer.step()
            if not in_place:
                optimizer.zero_grad(set_to_none=False)
            for p, grad, (place, version) in zip(model.parameters(), grads, before, strict=True):
                assert p.grad is grad and grad.data_ptr() == place and not grad.any()
                assert grad._version > version and optimizer.has_gradient(p)
        sides.append(weights(model))
    assert all(map(torch.equal, *sides))


def test_clip_gives_the_norm_and_the_step_scales():
    ours, theirs = make_model(), make_model()
    optimizer = Adam(ours.parameters())
    for model in (ours, theirs):
        model(batch(0)).backward()
    norm = optimizer.clip(1e-3)
    wanted = nn.utils.clip_grad_norm_(theirs.parameters(), 1e-3)
    assert float(norm) == pytest.approx(float(wanted), rel=1e-6)
    optimizer.step()
    # What a step leaves are the gradients that it used.
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=0)


@pytest.fixture
def ranks(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_of_several_ranks_gradients_are_added_in_place_where_no_ddp_is(ranks, monkeypatch):
    model, there = make_model(), {}
    Adam(model.parameters())
    gradients.without_ddp(model.conv.weight)
    place_of = gradients.place_of

    def noting(weight, pruned):
        there[id(weight)] = place_of(weight, pruned)
        return there[id(weight)]

    monkeypatch.setattr(gradients, "place_of", noting)
    model(batch(0)).backward()
    conv, linear = model.conv.weight, model.linear.weight
    assert there[id(conv)].data_ptr() == conv.grad.data_ptr() and there[id(linear)] is None
    other = make_model()
    other(batch(0)).backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_gradients_are_added_in_place_and_pruned_blocks_not_visited():
    model = make_model()
    optimizer = Adam(model.parameters(), clear=True)
    model(batch(0)).backward()
    optimizer.step()
    grad, layout = model.conv.weight.grad, model.conv.layout
    mask = layout.element_mask().permute(0, 2, 1)
    # Canaries: whoever reads one makes a NaN of something, whoever writes removes one.
    moments = [optimizer.state[model.conv.weight][n] for n in ("exp_avg", "exp_avg_sq")]
    for tensor in (grad, *moments):
        tensor.data[~mask] = float("nan")
    model(batch(1)).backward()
    model(batch(2)).backward()
    assert model.conv.weight.grad is grad and grad[mask].isfinite().all()
    assert float(optimizer.clip(0.5)) > 0
    optimizer.step()
    assert model.conv.weight.grad is grad and not grad[mask].any()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(t[~mask].isnan().all() for t in (grad, *moments))


def test_no_gradient_no_update():
    model = make_model()
    optimizer = Adam(model.parameters(), weight_decay=0.1)
    model(batch(0)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = weights(model)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    optimizer.zero_grad(set_to_none=False)  # of none, which stays so with torch's
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    model(batch(1)).backward()
    optimizer.zero_grad(set_to_none=False)  # torch's takes zeros for a gradient
    optimizer.step()
    assert not torch.equal(before[0], model.conv.weight)


@pytest.mark.parametrize("there", [Adam, torch.optim.Adam])
def test_states_go_both_ways(there):
    reference, model = make_model(), make_model()
    train(reference, torch.optim.Adam(reference.parameters(), lr=3e-3, fused=True), 8)
    first = there(model.parameters(), lr=3e-3)
    train(model, first, 4)
    file = io.BytesIO()
    torch.save((model.state_dict(), first.state_dict()), file)
    file.seek(0)
    values, state = torch.load(file, weights_only=True)
    again = make_model()
    again.load_state_dict(values)
    other = torch.optim.Adam if there is Adam else Adam
    second = other(again.parameters(), lr=3e-3)
    second.load_state_dict(state)
    assert second.state_dict()["state"].keys() == first.state_dict()["state"].keys()
    train(again, second, 4, first=4)
    assert_close(weights(again), weights(reference), 1e-6)


def test_adamw_is_torchs():
    ours, theirs = make_model(), make_model()
    train(ours, AdamW(ours.parameters(), lr=3e-3), 30)
    train(theirs, torch.optim.AdamW(theirs.parameters(), lr=3e-3, fused=True), 30)
    assert_close(weights(ours), weights(theirs))
    with pytest.raises(ValueError, match="decoupled_weight_decay"):
        AdamW(ours.parameters(), decoupled_weight_decay=False)


def test_groups_and_factors():
    """A Sniper's factors act inside the visit, on top of groups and schedulers of the user."""
    results = []
    for cls in (Adam, torch.optim.Adam):
        torch.manual_seed(0)
        model = Model()
        snip = Sniper(model, {0: 0.6, 1: 0.0}, block_size=16, lr_scale=LearningRateScale(max=5.0))
        snip.score([batch(9)], lambda m, x: m(x))
        optimizer = cls(snip.param_groups(lr=1e-3), fused=True)
        snip.step(0, optimizer)
        seen = []
        optimizer.register_step_post_hook(
            lambda o, *_, seen=seen: seen.append([len(g["params"]) for g in o.param_groups])
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for step in range(6):
            if step == 3:
                snip.step(1, optimizer)
            train(model, optimizer, 1, first=step)
            scheduler.step()
        assert {tuple(s) for s in seen} == {(2, 6)}
        results.append(weights(model))
        snip.detach()
    assert_close(*results, relative=1e-6)


def test_grad_scaler():
    results = []
    for cls in (Adam, torch.optim.Adam):
        model = make_model()
        optimizer = cls(model.parameters(), lr=3e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        for step in range(6):
            loss = model(batch(step)) * (float("inf") if step == 3 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scaler.get_scale() == 512
        results.append(weights(model))
    assert_close(*results)


def test_only_who_clears_is_called_at_an_overflow():
    """Lightning and Accelerate take an optimizer that unscales itself for one they may not clip."""
    for clear in (False, True):
        optimizer = Adam(make_model().parameters(), clear=clear)
        assert optimizer._step_supports_amp_scaling == clear
        assert copy.deepcopy(optimizer)._step_supports_amp_scaling == clear


def test_an_overflow_leaves_zeros_where_gradients_lie():
    model = make_model()
    optimizer = Adam(model.parameters(), lr=1e-2)
    optimizer.zero_in_place = True
    before = weights(model)
    model(batch(0)).backward()
    grads = [p.grad for p in model.parameters()]
    optimizer.found_inf = torch.ones(())  # as a GradScaler says it
    optimizer.step()
    assert all(map(torch.equal, weights(model), before))
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is grad and not grad.any()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_an_overflow_is_skipped_and_cleared(max_norm, unscale):
    """A scaler skips the step that clears: the next gradient must not be added to an infinite one,
    or the scale falls for ever.
    """
    results = []
    for cls in (Adam, torch.optim.Adam):
        model = make_model()
        options = {"max_norm": max_norm, "clear": True} if cls is Adam else {}
        optimizer = cls(model.parameters(), lr=3e-3, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        for step in range(6):
            loss = model(batch(step)) * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            if unscale or (cls is torch.optim.Adam and max_norm):
                scaler.unscale_(optimizer)
            if cls is torch.optim.Adam and max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            scaler.step(optimizer)
            scaler.update()
            if cls is torch.optim.Adam:
                optimizer.zero_grad()
        assert scaler.get_scale() == 512
        results.append(weights(model))
    assert_close(*results, relative=1e-6)


def test_contiguous_values_in_a_masked_convolution():
    """As `vector_to_parameters` puts them there: another memory order than the mask's."""
    results = []
    for cls in (Adam, torch.optim.Adam):
        model = make_model()
        optimizer = cls(model.parameters(), lr=3e-3)
        for step in range(4):
            if step == 2:
                model.conv.weight.data = model.conv.weight.data.contiguous()
            model(batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(weights(model))
    assert_close(*results, relative=1e-6)


def test_other_dtypes_go_torchs_way():
    results = []
    for cls in (Adam, torch.optim.Adam):
        model = make_model().double()
        model.norm.float()
        optimizer = cls(model.linear.parameters(), lr=3e-3)
        for step in range(5):
            y = model.linear(torch.full((4, 64), 0.1 * step + 0.1, dtype=torch.float64))
            y.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(weights(model.linear))
        mask = model.linear.layout.element_mask()[:, 0]
        assert not model.linear.weight[~mask].any()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_pruned_weights_that_somebody_wrote_are_zero_again():
    model = make_model()
    optimizer = Adam(model.parameters(), clear=True)
    for step in range(3):
        model(batch(step)).backward()
        if step:
            model.linear.reset_parameters()
        optimizer.step()
        mask = model.linear.layout.element_mask()[:, 0]
        assert not model.linear.weight[~mask].any()
        assert model.linear.weight[mask].any()


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_writes_through_data_are_zero_again_though_no_version_tells(name):
    model = make_model()
    optimizer = Adam(model.parameters(), clear=True)
    layer = getattr(model, name)
    pruned = ~layer.layout.element_mask()
    pruned = pruned[:, 0] if name == "linear" else pruned.permute(0, 2, 1)

    def step() -> int:
        model(batch(0)).backward()
        optimizer.step()
        return int(layer.weight[pruned].count_nonzero())

    assert step() == 0
    layer.weight.data.add_(1.0)  # all of it: seen by any row
    assert step() == 0
    # One value of the last row of the last pruned block: its turn comes once in a block's height.
    place = tuple(pruned.nonzero()[-1].tolist())
    layer.weight.data[place] = 1e-30
    left = [step() for _ in range(layer.block_size)]
    assert left[-1] == 0 and left == sorted(left, reverse=True)
    assert layer.weight[~pruned].any()


def test_states_and_settings_that_change_under_way():
    """What is kept from step to step follows whatever somebody lays anew."""
    results = []
    for cls in (Adam, torch.optim.Adam):
        model = make_model()
        optimizer = cls(model.parameters(), lr=3e-3, fused=True)
        for step in range(8):
            weight = (model.linear.weight, model.norm.weight)[step % 2]
            if step == 2:
                state = optimizer.state[weight]
                state["exp_avg"] = state["exp_avg"] * 0.5
                state["step"] = torch.tensor(7.0)
            if step == 3:
                weight.data = weight.data * 2
            if step == 4:
                optimizer.param_groups[0].update(lr=torch.tensor(1e-3), betas=(0.8, 0.99))
            if step == 5:
                weight.requires_grad_(False)
            if step == 6:
                optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "eps": 1e-3})
                optimizer.param_groups[1]["params"][0].grad = torch.ones(3)
            model(batch(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([*weights(model), optimizer.param_groups[1]["params"][0]])
    assert_close(*results)


def test_numbers_of_steps_are_of_any_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        p = nn.Parameter(torch.ones(20, dtype=torch.float32))
        optimizer = Adam([p], lr=0.5)
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert optimizer.state[p]["step"] == 3 and torch.allclose(p, torch.full_like(p, -0.5))


def test_masks_that_change_under_way():
    """Blocks that come back have moments and gradients of zero; those that go are zero."""
    model = make_model(0.3)
    optimizer = Adam(model.parameters(), clear=True)
    for step, density in enumerate((0.3, 0.6, 1.0, 0.2)):
        mask = torch.rand(model.linear.block_mask_shape, generator=torch.manual_seed(1)) < density
        model.linear.set_block_mask(mask)
        model(batch(step)).backward()
        optimizer.step()
        pruned = ~model.linear.layout.element_mask()[:, 0]
        state = optimizer.state[model.linear.weight]
        for tensor in (model.linear.weight, state["exp_avg"], state["exp_avg_sq"]):
            assert not tensor[pruned].any() and tensor[~pruned].any()


def test_a_deep_copy_trains_on_its_own():
    model = make_model()
    optimizer = Adam(model.parameters(), max_norm=1.0, clear=True)
    for step in range(2):
        model(batch(step)).backward()
        optimizer.step()
    twin, other = copy.deepcopy((model, optimizer))
    assert (other.max_norm, other.clear) == (1.0, True)
    before = weights(model)
    for each, optim in ((twin, other), (model, optimizer)):
        each(batch(7)).backward()
        optim.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(twin), weights(model), strict=True))
    assert not torch.equal(before[0], weights(model)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"foreach": True}, "foreach: expected None or False, got True"),
        ({"fused": False}, "fused: expected None or True, got False"),
        ({"differentiable": True}, "differentiable: expected False"),
        ({"max_norm": 0.0}, "max_norm: expected a number above 0 or None, got 0.0"),
        ({"max_norm": True}, "max_norm: expected"),
        ({"clear": 1}, "clear: expected a bool, got 1"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Adam([nn.Parameter(torch.zeros(3))], **options)


def test_a_group_of_the_user_is_refused_too():
    optimizer = Adam([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="foreach: expected"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "foreach": True})


def test_capturable_is_for_gpus():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match="capturable: expected parameters on a GPU"):
        Adam([p], capturable=True).step()


class TestWhereGradientsGo:
    """Through autograd wherever somebody may look."""

    @pytest.fixture
    def layer(self):
        layer = make_model().linear
        gradients.adopt(layer.weight)
        layer.weight.grad = torch.zeros_like(layer.weight)
        return layer

    def test_autograd_grad_returns_it(self, layer):
        x = torch.randn(4, 64, requires_grad=True)
        dx, dw = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
        assert dw.any() and dx.any() and not layer.weight.grad.any()
        (dx,) = torch.autograd.grad(layer(x).sum(), (x,))
        assert dx.any() and not layer.weight.grad.any()
        layer(x).sum().backward(inputs=[x])
        assert not layer.weight.grad.any()
        layer(x).sum().backward(inputs=[layer.weight])
        assert torch.equal(layer.weight.grad, dw)

    def test_hooks_see_it(self, layer):
        seen = []
        layer.weight.register_hook(lambda g: seen.append(g.abs().sum()))
        layer(torch.ones(4, 64)).sum().backward()
        assert seen[0] > 0 and layer.weight.grad.abs().sum() == seen[0]

    def test_gradients_of_gradients(self, layer):
        x = torch.randn(4, 64, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        got = layer.weight.grad.clone()
        plain = nn.Linear(64, 48)
        plain.load_state_dict(layer.state_dict())
        (dx,) = torch.autograd.grad(plain(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        mask = layer.layout.element_mask()[:, 0]
        assert torch.allclose(got, plain.weight.grad * mask, rtol=1e-4, atol=1e-4)

    def test_copies_are_not_adopted(self, layer):
        twin = copy.deepcopy(layer)
        twin.weight.grad = torch.zeros_like(twin.weight)
        calls = []
        twin.weight.register_hook(lambda g: calls.append(g))
        twin(torch.ones(4, 64)).sum().backward()
        assert len(calls) == 1 and calls[0].any()


def test_wgrad_adds_to_active_blocks_alone():
    model = make_model()
    layer, x = model.conv, torch.randn(2, 700, 32)
    dy = torch.randn(2, 700, 64)
    geometry = sniper.ops.Geometry(3, 1, 1, 1)
    dw, db = CPU.wgrad(dy, x, layer.layout, geometry, True)
    mask = as_matrix(layer.layout.element_mask().permute(0, 2, 1)).contiguous()
    before = torch.randn_like(dw)
    into = before.clone()
    into[~mask] = float("nan")
    got, same = CPU.wgrad(dy, x, layer.layout, geometry, True, into)
    assert got is into and torch.equal(db, same)
    assert torch.equal(into[mask], before[mask] + dw[mask])
    assert into[~mask].isnan().all()
    with pytest.raises(ValueError, match="into: expected"):
        CPU.wgrad(dy, x, layer.layout, geometry, True, into[:, ::2].repeat(1, 2).t()[:64])


def test_the_general_hook_leaves_kept_weights_alone(monkeypatch):
    model = make_model()
    optimizer = Adam(model.parameters())
    model(batch(0)).backward()
    optimizer.step()
    monkeypatch.setattr(BlockSparseLinear, "zero_pruned", lambda *_: pytest.fail("visited"))
    assert id(model.linear.weight) in zeros.layouts_of_weights()
    optimizer.step()


def test_a_gradient_made_anew_counts_whatever_its_version():
    """The model's own zero_grad takes away what the optimizer had cleared."""
    model = make_model()
    optimizer = Adam(model.parameters(), lr=0.1, clear=True)
    for step in range(3):
        before = weights(model)
        model.zero_grad()
        model(batch(step)).backward()
        assert all(optimizer.has_gradient(p) for p in model.parameters())
        optimizer.step()
        assert all((a != b).any() for a, b in zip(weights(model), before, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "dense"])
def test_the_first_gradient_is_not_rounded_as_the_weight_was_cast(backend):
    """Under autocast: a run that is resumed adds its first gradient where others add theirs."""
    model, again = make_model(), make_model()
    made = [Adam(m.parameters(), lr=1e-3) for m in (model, again)]
    again.conv.weight.grad = torch.zeros_like(again.conv.weight)
    for m in (model, again):
        with torch.autocast("cpu", torch.bfloat16), ops.use_backend(backend):
            m(batch(0)).backward()
    assert torch.equal(model.conv.weight.grad, again.conv.weight.grad)
    rounded = torch.equal(model.conv.weight.grad, model.conv.weight.grad.bfloat16().float())
    assert rounded == (backend == "dense")  # torch has no other
    assert all(o.has_gradient(m.conv.weight) for o, m in zip(made, (model, again), strict=True))


@pytest.mark.parametrize("clear", [False, True])
def test_a_gradient_that_is_taken_away_is_not_kept(clear):
    model = make_model()
    optimizer = Adam(model.parameters(), clear=clear)
    model(batch(0)).backward()
    gone = TensorWeakRef(model.out.weight.grad)
    optimizer.clip(1.0)
    optimizer.step()
    if not clear:
        model.zero_grad()
    assert model.out.weight.grad is None and gone() is None


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=str)
def test_a_gradient_that_is_dropped_is_not_written(options):
    """A visit of its memory less; whoever took it out before finds it as it was."""
    model = make_model()
    optimizer = Adam(model.parameters(), max_norm=1e-3, clear=True, **options)
    model(batch(0)).backward()
    taken = model.out.weight.grad, model.conv.weight.grad
    dropped, before = taken[0], taken[0].clone()
    optimizer.step()
    assert torch.equal(dropped, before) and before.any()
    assert model.conv.weight.grad is taken[1] and not taken[1].any()


def other_weight(model, optimizer):
    model.norm.weight.data = model.norm.weight.data.clone()


def other_parameter(model, optimizer):
    # Not in its place: a weight of its own, as a group gets that is edited by hand.
    new = nn.Parameter(model.norm.weight.detach().clone())
    new.grad = torch.ones_like(new)
    optimizer.param_groups[0]["params"][4] = new


def other_moment(model, optimizer):
    state = optimizer.state[model.linear.weight]
    state["exp_avg_sq"] = state["exp_avg_sq"].clone()


def moved_moment(model, optimizer):
    moment = optimizer.state[model.linear.weight]["exp_avg"]
    moment.data = moment.data.clone()


def other_state(model, optimizer):
    state = optimizer.state[model.norm.bias]
    optimizer.state[model.norm.bias] = {name: t.clone() for name, t in state.items()}


def other_count(model, optimizer):
    optimizer.state[model.norm.bias]["step"] = torch.tensor(9.0)


def loaded(model, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def no_gradient(model, optimizer):
    model.out.bias.grad = None


def turned_gradient(model, optimizer):
    model.out.weight.grad = model.out.weight.grad.t().contiguous().t()


def cleared_gradient(model, optimizer):
    optimizer._mark_cleared(model.conv.weight, model.conv.weight.grad)


def rates(model, optimizer):
    optimizer.rate_factors = {model.conv.weight: 2.0}


def betas(model, optimizer):
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)


def decay(model, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.5


def group(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


def mask(model, optimizer):
    model.conv.set_block_mask(torch.ones(model.conv.block_mask_shape, dtype=torch.bool))


CHANGES = (
    other_weight,
    other_parameter,
    other_moment,
    moved_moment,
    other_state,
    other_count,
    loaded,
    no_gradient,
    turned_gradient,
    cleared_gradient,
    rates,
    betas,
    decay,
    group,
    mask,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_a_step_visits_is_collected_anew(change):
    model = make_model()
    optimizer = Adam(model.parameters())
    model(batch(0)).backward()
    optimizer.step()
    kept = [*weights(model), *(dict(s) for s in optimizer.state.values())]
    kept += [t.detach() for s in optimizer.state.values() for t in s.values()]
    before = optimizer._rows.collect()
    assert optimizer._rows.collect() is before
    change(model, optimizer)
    assert optimizer._rows.collect() is not before and kept


def test_a_cleared_gradient_counts_again_once_it_was_written():
    model = make_model()
    optimizer = Adam(model.parameters(), clear=True)
    model(batch(0)).backward()
    optimizer.step()
    rows, _ = optimizer._rows.collect()
    assert rows == []  # all are cleared, or gone
    model.conv.weight.grad.add_(1.0)
    assert [r.weight for r in optimizer._rows.collect()[0]] == [model.conv.weight]
    other = torch.zeros_like(model.linear.weight)  # another tensor, not a version more
    model.linear.weight.grad = other
    assert len(optimizer._rows.collect()[0]) == 2


@pytest.mark.parametrize("options", [{}, {"clear": True}])
def test_a_gradient_that_goes_between_clip_and_step_is_missed(options):
    model = make_model()
    optimizer = Adam(model.parameters(), **options)
    model(batch(0)).backward()
    optimizer.clip(1.0)
    model.norm.bias.grad = None
    with pytest.raises(ValueError, match="gradients: expected one of each parameter, got none of"):
        optimizer.step()


def test_a_gradient_of_another_dtype_is_refused_as_by_torch():
    said = []
    for cls in (torch.optim.Adam, Adam):
        p = nn.Parameter(torch.zeros(64))
        optimizer = cls([p])
        for dtype in (torch.float32, torch.bfloat16):  # the second time with a table that is kept
            p.grad = None
            p.grad_dtype = dtype
            p.grad = torch.ones(64, dtype=dtype)
            if dtype == torch.float32:
                optimizer.step()
        with pytest.raises(RuntimeError, match="dtype") as error:
            optimizer.step()
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("grown", [False, True])
def test_a_smaller_mask_leaves_nothing_of_the_gradient_before(grown):
    found = []
    for cls in (torch.optim.Adam, Adam):
        model = make_model(1.0)
        optimizer = cls(model.parameters(), lr=0.1)
        train(model, optimizer, 1)
        model(batch(7)).backward()
        model.linear.set_block_mask(torch.eye(3, 4, dtype=torch.bool))
        optimizer.zero_grad()
        if grown:
            model.linear.set_block_mask(torch.ones(3, 4, dtype=torch.bool))
        model(batch(8)).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        found.append([norm, *(p.grad.clone() for p in model.parameters())])
        if grown:
            optimizer.step()
            found[-1] += weights(model)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_both_kinds_of_zero_grad_after_one_another():
    found = []
    for cls in (torch.optim.Adam, Adam):
        model = make_model()
        optimizer = cls(model.parameters(), lr=0.1)
        train(model, optimizer, 2)
        optimizer.zero_grad()
        optimizer.zero_grad(set_to_none=False)  # of what is not there
        optimizer.step()
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_groups_that_somebody_puts_in_place_of_others_count():
    model = make_model()
    optimizer = Adam(model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    before = weights(model)
    optimizer.param_groups = [{**group, "lr": 0.0} for group in optimizer.param_groups]
    train(model, optimizer, 1, first=2)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_factors_that_are_exchanged_count():
    found = []
    for kept in (True, False):
        model = make_model()
        optimizer = Adam(model.parameters(), lr=0.01)
        pair = [model.conv.weight, model.linear.weight]
        optimizer.rate_factors = dict(zip(pair, (2.0, 3.0), strict=True))
        train(model, optimizer, 2)
        optimizer.rate_factors = dict(zip(reversed(pair), (2.0, 3.0), strict=True))
        if not kept:
            optimizer._rows.forget()
        train(model, optimizer, 2, first=2)
        found.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
