# SPDX-License-Identifier: Apache-2.0
"""SNIPER in a plain training loop.

    python examples/own_loop.py
    python examples/own_loop.py --epochs 30 --width 1024 --save runs/own_loop.pt

A student network learns what a fixed random teacher computes. Its first third of the epochs is
80 % sparse in blocks of 64, its second 40 %, its last dense. The five lines that SNIPER adds to an
ordinary loop are numbered. With `--save`, a run that was stopped goes on with the same command.
It runs on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import sniper

Batch = tuple[Tensor, Tensor]


def network(width: int) -> nn.Sequential:
    """`[B, 256]` -> `[B, 256]` with two hidden layers."""
    return nn.Sequential(
        *(nn.Linear(256, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, 256),
    )


@torch.no_grad()
def teach(width: int, batches: int) -> list[Batch]:
    """Inputs and the answers of a network that is never trained, both `[64, 256]`."""
    generator = torch.Generator().manual_seed(1)
    teacher = network(width)
    inputs = [torch.randn(64, 256, generator=generator) for _ in range(batches)]
    return [(x, 10 * teacher(x)) for x in inputs]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """What the loop trains with and what the weights are scored with."""
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--width", type=int, default=512, help="of the hidden layers")
    parser.add_argument("--batches", type=int, default=50, help="of an epoch")
    parser.add_argument("--save", type=Path, help="checkpoint to write, and to go on from")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    *train, held_out = [
        (x.to(device), y.to(device)) for x, y in teach(options.width, options.batches + 1)
    ]
    model = network(options.width).to(device)

    third = max(options.epochs // 3, 1)
    snip = sniper.Sniper(model, {0: 0.8, third: 0.4, 2 * third: 0.0})  # 1: layers may be sparse now
    optimizer = torch.optim.Adam(snip.param_groups(lr=1e-3))  # 2: or any groups of your own
    first = 0
    if options.save and options.save.exists():
        saved = torch.load(options.save, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        snip.load_state_dict(saved["sniper"])  # after the weights
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    else:
        snip.score(train[:8], loss_fn)  # 3: once, before training

    for epoch in range(first, options.epochs):
        reached = snip.step(epoch, optimizer)  # 4: at the start of every epoch
        started = time.perf_counter()
        for batch in train:
            loss_fn(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            loss = loss_fn(model, held_out).item()  # waits for what a GPU has not done yet
        seconds = time.perf_counter() - started
        print(f"epoch {epoch}: sparsity {reached:.0%}, held-out loss {loss:.4f}, {seconds:.2f} s")
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            parts = {"model": model, "optimizer": optimizer, "sniper": snip}
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"epoch": epoch, **state}, options.save)
    sniper.densify(model)  # 5: plain torch layers again, for whoever takes the model from here
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
