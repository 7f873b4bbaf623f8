# SPDX-License-Identifier: Apache-2.0
"""Block-sparse layers in a model of your own: what is taken, what runs it, what it does to a step.

    python examples/own_model.py
    python examples/own_model.py --width 512 --layers 4 --epochs 9

The model is torch's own `nn.TransformerEncoder`, which predicts the next symbol of sequences that
count up modulo 64, each by a step of its own. The report says which layers became sparse and why
the others did not; a table after the sparse epochs says which implementation ran each pass of each
layer, with the times that decided it. It runs on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

import sniper

SYMBOLS = 64


class Predictor(nn.Module):
    """Symbols `[B, T]` to logits of the next ones, `[B, T, 64]`."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        length, device = symbols.shape[1], symbols.device
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=device)
        return self.head(self.encoder(self.embed(symbols), mask=mask, is_causal=True))


def sequences(batches: int, length: int) -> list[Tensor]:
    """Symbols `[8, length + 1]`, int64."""
    generator = torch.Generator().manual_seed(0)
    start, step = torch.randint(1, SYMBOLS, (2, batches, 8, 1), generator=generator)
    return list((start + step * torch.arange(length + 1)) % SYMBOLS)


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=10, help="of an epoch")
    parser.add_argument("--length", type=int, default=128, help="of a sequence")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    sniper.ops.keep_freed_memory()  # a CPU step finds its memory mapped
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Predictor(options.width, options.layers).to(device)
    batches = [batch.to(device) for batch in sequences(options.batches, options.length)]

    # fast_dropout: torch draws a CPU's random numbers on one thread.
    print(sniper.sparsify(model, exclude=["head"], fast_dropout=True), end="\n\n")
    third = max(options.epochs // 3, 1)
    snip = sniper.Sniper(model, {0: 0.8, third: 0.4, 2 * third: 0.0}, exclude=["head"])
    snip.score(batches[:4], loss_fn)
    optimizer = torch.optim.Adam(snip.param_groups(lr=5e-4))
    for epoch in range(options.epochs):
        reached = snip.step(epoch, optimizer)
        total, seconds = 0.0, []
        for batch in batches:
            started = time.perf_counter()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()  # waits for what a GPU has not done yet
            seconds.append(time.perf_counter() - started)
        # The first step after a change of masks also measures which implementation is fastest.
        step = sorted(seconds)[len(seconds) // 2]
        print(
            f"epoch {epoch}: sparsity {reached:.0%}, loss {total / len(batches):.3f}, "
            f"{1e3 * step:.0f} ms a step"
        )
        if epoch == third - 1:
            print()
            sniper.ops.explain(model)
            print()
    plain = Predictor(options.width, options.layers)
    plain.load_state_dict(sniper.densify(model).state_dict())
    print("the weights load into the plain model")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
