# SPDX-License-Identifier: Apache-2.0
"""What test_lightning.py has two processes do: python lightning_ranks.py FOLDER.

Lightning starts the second one itself. Each leaves RANK.pt in the folder.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from sniper.integrations.lightning import SniperCallback

SCHEDULE = {0: 0.75, 1: 0.4, 3: 0.0}


class Module(lightning.LightningModule):
    """A convolution, whose weight changes its order in memory with its mask, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 64, 3, padding=1)
        self.out = nn.Linear(64, 32)

    def training_step(self, batch, batch_idx):
        y = self.out(self.conv(batch.transpose(1, 2)).relu().transpose(1, 2))
        return (y - batch.flip(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Skips(Module):
    """On one of the two ranks no batch has a loss."""

    def training_step(self, batch, batch_idx):
        return None if dist.get_rank() else super().training_step(batch, batch_idx)


class Watch(Callback):
    """The masks in force and what was sent, at the end of each epoch."""

    def __init__(self, callback: SniperCallback) -> None:
        self.callback, self.masks, self.sent = callback, [], []

    def on_train_batch_start(self, *args: Any) -> None:
        if self.callback.gradient_exchange is not None:
            self.callback.gradient_exchange.bytes = 0

    def on_train_epoch_end(self, *args: Any) -> None:
        snip, exchange = self.callback.sniper, self.callback.gradient_exchange
        assert snip is not None
        self.masks.append({name: mask.clone() for name, mask in snip.masks().items()})
        self.sent.append(None if exchange is None else exchange.bytes)


def data(alike: bool = False) -> torch.Tensor:
    """Sixteen utterances; with `alike` sixteen times one, on which any split is the same."""
    x = torch.randn(1 if alike else 16, 8, 32, generator=torch.Generator().manual_seed(1))
    return x.repeat(16 // len(x), 1, 1)


def fit(
    folder: Path,
    name: str,
    ckpt_path: Path | None = None,
    devices: int = 2,
    data: torch.Tensor = data(),  # noqa: B008
    kind: type[Module] = Module,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(0)
    module, callback = kind(), SniperCallback(SCHEDULE, block_size=16, **options)
    watch = Watch(callback)
    saver = ModelCheckpoint(folder / name, "{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[callback, watch, saver],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=2), ckpt_path=ckpt_path)
    return {"weights": module.state_dict(), "masks": watch.masks, "sent": watch.sent}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {
        "plain": fit(folder, "plain"),
        "packed": fit(folder, "packed", exchange=torch.float32),
        "half": fit(folder, "half", exchange=torch.bfloat16),
    }
    found["alike"] = fit(folder, "alike", data=data(alike=True), exchange=torch.float32)
    dist.barrier()  # rank 0 writes the checkpoints
    path = folder / "packed" / "epoch=1.ckpt"
    found["resumed"] = fit(folder, "resumed", path, exchange=torch.float32)
    try:
        fit(folder, "skips", kind=Skips)
    except ValueError as error:
        found["skips"] = str(error)
    torch.save(found, folder / f"{dist.get_rank()}.pt")


if __name__ == "__main__":
    main()
