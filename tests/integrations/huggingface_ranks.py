# SPDX-License-Identifier: Apache-2.0
"""What test_huggingface.py has two processes do: torchrun --nproc_per_node=2 huggingface_ranks.py
FOLDER. Each leaves RANK.pt in the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from sniper.integrations.huggingface import SniperCallback

SCHEDULE = {0: 0.75, 1: 0.4, 3: 0.0}


class Model(nn.Module):
    """A convolution, whose weight changes its order in memory with its mask, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 64, 3, padding=1)
        self.out = nn.Linear(64, 32)

    def forward(self, x, labels=None):
        y = self.out(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))
        return {"loss": (y - labels).square().mean(), "y": y}


class Watch(TrainerCallback):
    """The masks in force and what was sent, at the end of each epoch."""

    def __init__(self, callback: SniperCallback) -> None:
        self.callback, self.masks, self.sent = callback, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        if self.callback.gradient_exchange is not None:
            self.callback.gradient_exchange.bytes = 0

    def on_epoch_end(self, args, state, control, **kwargs):
        snip, exchange = self.callback.attached, self.callback.gradient_exchange
        self.masks.append({name: mask.clone() for name, mask in snip.masks().items()})
        self.sent.append(None if exchange is None else exchange.bytes)


def data(alike: bool = False) -> torch.Tensor:
    """Sixteen utterances; with `alike` sixteen times one, on which any split is the same."""
    x = torch.randn(1 if alike else 16, 8, 32, generator=torch.Generator().manual_seed(1))
    return x.repeat(16 // len(x), 1, 1)


def train(
    folder: Path,
    name: str,
    resume: Path | None = None,
    data: torch.Tensor = data(),  # noqa: B008
    epochs: int = 4,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Model()
    if resume is not None:
        options["resume_from"] = resume
    callback = SniperCallback(SCHEDULE, block_size=16, **options)
    watch = Watch(callback)
    args = TrainingArguments(
        output_dir=str(folder / name),
        num_train_epochs=epochs,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    items = [{"x": x, "labels": x.flip(0)} for x in data]
    trainer = Trainer(model, args, train_dataset=items, callbacks=[callback, watch])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return {"weights": model.state_dict(), "masks": watch.masks, "sent": watch.sent}


def main() -> None:
    folder = Path(sys.argv[1])

    torch.set_num_threads(1)
    found = {
        "plain": train(folder, "plain"),
        "packed": train(folder, "packed", exchange=torch.float32),
        "half": train(folder, "half", exchange=torch.bfloat16),
    }
    found["alike"] = train(folder, "alike", data=data(alike=True), exchange=torch.float32)
    dist.barrier()  # rank 0 writes the checkpoints
    path = folder / "packed" / "checkpoint-8"  # of the second epoch
    found["resumed"] = train(folder, "resumed", path, exchange=torch.float32)
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
