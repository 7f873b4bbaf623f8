# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn

from sniper import Sniper
from sniper.sparsity.moments import as_list, prime


def test_one_several_or_no_optimizers():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    assert as_list(None) == []
    assert as_list(optimizer) == [optimizer]
    assert as_list((optimizer, optimizer)) == [optimizer, optimizer]


def test_wrapped_optimizers_are_unwrapped():
    from accelerate import Accelerator

    plain = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    wrapped = Accelerator(cpu=True).prepare(plain)
    assert wrapped is not plain
    assert as_list(wrapped) == as_list([wrapped]) == [plain]


def test_new_weights_get_the_mean_second_moment_of_the_active_ones():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.Adam([p], lr=1.0, amsgrad=True)
    p.grad = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    optimizer.step()
    active = torch.tensor([[True, True], [False, False]])
    newly = torch.tensor([[False, False], [True, False]])
    prime([optimizer], p, active, newly)
    state = optimizer.state[p]
    for name in ("exp_avg_sq", "max_exp_avg_sq"):
        # 0.001 * (1 + 9) / 2, for the one weight that becomes active
        torch.testing.assert_close(state[name], torch.tensor([[0.001, 0.009], [0.005, 0.0]]))
    torch.testing.assert_close(state["exp_avg"], torch.tensor([[0.1, 0.3], [0.0, 0.0]]))
    prime([optimizer], p, active, torch.tensor([[False, False], [False, True]]), times=4.0)
    torch.testing.assert_close(state["exp_avg_sq"], torch.tensor([[0.001, 0.009], [0.005, 0.02]]))


def test_an_optimizer_without_second_moments_is_left_alone():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    p.grad = torch.ones(2)
    optimizer.step()
    prime([optimizer], p, torch.tensor([True, False]), torch.tensor([False, True]))
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], torch.ones(2))


def first_step_of_new_weights(prime_moments: float) -> float:
    """Largest step, in learning rates, of weights that became active after 100 updates."""
    torch.manual_seed(0)
    model = nn.Linear(32, 32, bias=False)
    sniper = Sniper(
        model,
        {0: 0.5, 1: 0.0},
        block_size=16,
        restore_init=False,
        scale_lr=False,
        prime_moments=prime_moments,
    )
    x = torch.randn(64, 32)

    def loss_fn(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (m(batch) - batch.roll(1, 1)).square().mean()

    sniper.score([x], loss_fn)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sniper.step(0, optimizer)
    newly = model.weight.detach() == 0
    for update in range(101):
        if update == 100:
            sniper.step(1, optimizer)
            before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss_fn(model, torch.randn(64, 32)).backward()
        optimizer.step()
    assert newly.any()
    return ((model.weight.detach() - before)[newly].abs().max() / 1e-3).item()


def test_primed_weights_do_not_leap():
    primed = first_step_of_new_weights(prime_moments=1.0)
    assert first_step_of_new_weights(prime_moments=0.0) > 0.9
    assert primed < 0.5
    assert 0.2 * primed < first_step_of_new_weights(prime_moments=16.0) < 0.3 * primed
