# SPDX-License-Identifier: Apache-2.0
"""Dropout, ReLU with dropout, and attention with dropout, beside torch's own.

python bench/bench_elementwise.py [dropout relu_dropout attention] [--device cuda] [--repeats 15]
    [--no-save]

Forward, and backward through autograd, on 8 x 540 frames: the inner width of a feed-forward block
for dropout, the model's width for attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import common
import torch
import torch.nn.functional as F
from torch import Tensor

from sniper import ops

RATE, HEADS = 0.2, 2
BATCH, LENGTH, INNER, WIDTH = 8, 540, 1536, 384
# So small that nothing is dropped, and the same kernels still run: what they then compute is exact.
NOTHING_DROPPED = 1e-9

Op = Callable[..., Tensor]  # inputs, then the rate


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2)


OPS: dict[str, dict[str, Op]] = {
    "dropout": {"torch": F.dropout, "ours": ops.dropout},
    "relu_dropout": {"torch": lambda x, p: F.dropout(F.relu(x), p), "ours": ops.relu_dropout},
    "attention": {
        "torch": _torch_attention,
        "ours": lambda q, k, v, p: ops.attention(q, k, v, HEADS, dropout_p=p),
    },
}
PASSES = ("fwd", "bwd")


class Case:
    """One op on random inputs `[B, T, C]`, for every provider.

    Args:
        op: a name of `OPS`.
        tokens: batch and length.
    """

    def __init__(
        self,
        op: str,
        tokens: tuple[int, int] = (BATCH, LENGTH),
        device: torch.device | str = "cpu",
    ):
        torch.manual_seed(0)
        self.op = op
        count, channels = (3, WIDTH) if op == "attention" else (1, INNER)
        self.shape = (*tokens, channels)
        self.inputs = [torch.randn(self.shape, device=device) for _ in range(count)]
        self.dy = torch.randn(self.shape, device=device)

    def calls(self, pass_: str) -> dict[str, Callable[[], object]]:
        """Of one pass, by provider; backward runs again and again on one graph."""
        if pass_ == "fwd":
            return {n: lambda f=f: f(*self.inputs, RATE) for n, f in OPS[self.op].items()}
        return {n: self._backward(f, RATE)[1] for n, f in OPS[self.op].items()}

    def _backward(self, op: Op, p: float) -> tuple[Tensor, Callable[[], tuple[Tensor, ...]]]:
        """The result, and what computes the gradients of the inputs."""
        leaves = [t.clone().requires_grad_() for t in self.inputs]
        with torch.enable_grad():
            y = op(*leaves, p)
        return y.detach(), lambda: torch.autograd.grad(y, leaves, self.dy, retain_graph=True)

    def check(self) -> None:
        """Holds ours against torch's: exactly where nothing is dropped, and by the share of zeros,
        the scale of the rest and the gradient where something is.
        """
        wanted, wanted_grads = self._backward(OPS[self.op]["torch"], 0.0)
        got, got_grads = self._backward(OPS[self.op]["ours"], NOTHING_DROPPED)
        common.check_close(f"{self.op} fwd", got, wanted, 1e-5)
        for grad, reference in zip(got_grads(), wanted_grads(), strict=True):
            common.check_close(f"{self.op} bwd", grad, reference, 1e-5)
        if self.op == "attention":
            return  # which weights were dropped does not show in its result
        y, grads = self._backward(OPS[self.op]["ours"], RATE)
        kept, counts = y != 0, wanted != 0
        common.check_close(f"{self.op} kept", y, wanted * kept / (1 - RATE), 1e-5)
        (dx,) = grads()
        common.check_close(f"{self.op} bwd kept", dx, self.dy * kept / (1 - RATE), 1e-5)
        n = int(counts.sum())
        share, deviation = 1 - int((kept & counts).sum()) / n, (RATE * (1 - RATE) / n) ** 0.5
        if abs(share - RATE) > 5 * deviation:
            raise SystemExit(f"{self.op}: dropped {share:.4f}, expected {RATE}: not timed")


def measure(op: str, device: torch.device, repeats: int) -> list[common.Row]:
    """Rows of every provider and pass; printed too."""
    case = Case(op, device=device)
    case.check()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = []
    for pass_ in PASSES:
        times = common.time_side_by_side(case.calls(pass_), repeats, wait)
        cuts = {name: common.percentiles(t) for name, t in times.items()}
        for name, (p20, p50, p80) in cuts.items():
            ratio = cuts["torch"][1] / p50
            print(f"{op} {pass_} {name}: {p50:.2f} ms ({p20:.2f} to {p80:.2f}), {ratio:.2f}x")
        shape = "x".join(map(str, case.shape))
        what = {"op": op, "shape": shape, "block": 1, "density": 1.0, "dtype": "float32"}
        found += common.rows(cuts, cuts["torch"][1], device, pass_=pass_, **what)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("which", nargs="*", choices=[*OPS, []], help="all without any")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    ops.keep_freed_memory()  # for both sides, as training does
    device = torch.device(args.device)
    found = [row for op in args.which or OPS for row in measure(op, device, args.repeats)]
    if not args.no_save:
        print(common.append_rows(f"elementwise_{device.type}", found))


if __name__ == "__main__":
    main()
