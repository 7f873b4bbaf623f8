# SPDX-License-Identifier: Apache-2.0
"""The authors' image example, weight by weight as in the paper, on scikit-learn's digits.

    python examples/digits.py
    python examples/digits.py --epochs 50

Sparsity 80 -> 40 -> 20 -> 10 -> 0 % in equal parts of the run. Single weights are masked, which
saves no time: this is for studying the method. `pip install scikit-learn` if it is not there. It
runs on a GPU if there is one.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sniper


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16  # [1797, 64]
    y = torch.tensor(digits.target, device=device)
    train, test = torch.randperm(len(x)).split([1400, len(x) - 1400])

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)

    def loss_fn(model: nn.Module, rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x[rows]), y[rows])

    fifths = (round(i * options.epochs / 5) for i in range(5))
    schedule = dict(zip(fifths, (0.8, 0.4, 0.2, 0.1, 0.0), strict=True))
    snip = sniper.Sniper.paper(model, schedule)
    snip.score(train.split(100), loss_fn)
    optimizer = torch.optim.Adam(snip.param_groups(lr=1e-3))
    for epoch in range(options.epochs):
        reached = snip.step(epoch, optimizer)
        for rows in train[torch.randperm(len(train))].split(50):
            optimizer.zero_grad()
            loss_fn(model, rows).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
        print(f"epoch {epoch}: sparsity {reached:.0%}, accuracy on held-out digits {accuracy:.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
