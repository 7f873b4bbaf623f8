# SPDX-License-Identifier: Apache-2.0
"""SNIPER inside Lightning's Trainer.

    python examples/lightning_callback.py
    python examples/lightning_callback.py --epochs 30 --width 1024

`pip install -e '.[lightning]'`. Weights are scored with the loss of `training_step`; masks
and schedule lie in Lightning's checkpoints, so `fit(ckpt_path=...)` goes on where it was. The
model learns to give back vectors that lie near a plane of 16 dimensions. It runs on a GPU if there
is one.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sniper.integrations.lightning import SniperCallback


class Autoencoder(lightning.LightningModule):
    """`[B, 128]` -> `[B, 128]`."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(128, width), nn.ReLU(), nn.Linear(width, 128))

    def training_step(self, batch: Tensor) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch), batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Report(lightning.Callback):
    """Prints a line an epoch."""

    def __init__(self, masks: SniperCallback):
        self.masks = masks

    def on_train_epoch_end(self, trainer, pl_module):
        loss = trainer.callback_metrics["loss"].item()
        sparsity = self.masks.sniper.sparsity
        print(f"epoch {trainer.current_epoch}: sparsity {sparsity:.0%}, loss {loss:.4f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args(argv)
    lightning.seed_everything(0, verbose=False)
    data = torch.randn(512, 16) @ torch.randn(16, 128) / 4 + 0.01 * torch.randn(512, 128)
    third = max(options.epochs // 3, 1)
    masks = SniperCallback({0: 0.8, third: 0.4, 2 * third: 0.0})
    trainer = lightning.Trainer(
        max_epochs=options.epochs,
        devices=1,
        callbacks=[masks, Report(masks)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Autoencoder(options.width), DataLoader(data, batch_size=32, shuffle=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
