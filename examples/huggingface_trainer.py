# SPDX-License-Identifier: Apache-2.0
"""SNIPER inside Hugging Face's Trainer, on their FastSpeech2Conformer.

    python examples/huggingface_trainer.py
    python examples/huggingface_trainer.py --epochs 9 --hidden 384 --output runs/huggingface

`pip install -e '.[huggingface]'`. The callback scores before training and puts the masks on
epoch by epoch; `--resume` goes on from the last checkpoint in `--output`. The speech is random
numbers, so that the example needs no download: its loss says that training works, nothing more.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from transformers import (
    FastSpeech2ConformerConfig,
    FastSpeech2ConformerModel,
    Trainer,
    TrainingArguments,
)

from sniper.integrations.huggingface import SniperCallback

MELS, FRAMES_A_TOKEN = 80, 4


def utterance(tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Tokens with four frames each, as the model's forward names them."""
    return {
        "input_ids": torch.randint(1, 50, (tokens,), generator=generator),
        "attention_mask": torch.ones(tokens, dtype=torch.long),
        "duration_labels": torch.full((tokens,), FRAMES_A_TOKEN),
        "pitch_labels": torch.randn(tokens, 1, generator=generator),
        "energy_labels": torch.randn(tokens, 1, generator=generator),
        "spectrogram_labels": torch.randn(tokens * FRAMES_A_TOKEN, MELS, generator=generator),
    }


class Report(SniperCallback):
    """`SniperCallback` that prints a line an epoch."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        super().on_epoch_begin(args, state, control, **kwargs)
        print(f"epoch {round(state.epoch or 0)}: sparsity {self.sniper.sparsity:.0%}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=128, help="width of encoder and decoder")
    parser.add_argument("--output", default="runs/huggingface")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = FastSpeech2ConformerConfig(
        hidden_size=options.hidden, encoder_layers=1, decoder_layers=1, vocab_size=50
    )
    third = max(options.epochs // 3, 1)
    # The postnet stays dense: behind a pruned convolution BatchNorm divides by nearly 0.
    callback = Report({0: 0.8, third: 0.4, 2 * third: 0.0}, exclude=["postnet"])
    trainer = Trainer(
        FastSpeech2ConformerModel(config),
        TrainingArguments(
            options.output,
            num_train_epochs=options.epochs,
            save_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[utterance(9, generator) for _ in range(options.utterances)],
        callbacks=[callback],
    )
    result = trainer.train(resume_from_checkpoint=options.resume or None)
    active = callback.sniper.densities()
    print(f"training loss {result.training_loss:.3f}, {len(active)} parameters were masked")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
