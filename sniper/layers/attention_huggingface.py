# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's attention of FastSpeech2Conformer by our kernel; loaded where a model has one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import (
    FastSpeech2ConformerAttention,
)

from sniper.layers.dropout import drop_rate
from sniper.ops.relative_attention import fuses_relative_attention, relative_attention


class RelativeAttention(FastSpeech2ConformerAttention):
    """The same function; for float32 on a CPU, and where no weights are asked for, in one kernel
    each way.

    What `sniper.sparsify(fast_attention=True)` makes of those of a model.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        pos_emb: Tensor | None = None,
        output_attentions: Any = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`[B, T, C]`, mask `[B, 1, T]`, `[1, 2 T - 1, C]` -> `[B, T, C]` and None, or weights."""
        batch, length, _ = hidden_states.shape
        rate = drop_rate(self.dropout)
        masked = attention_mask is not None
        if (
            output_attentions
            or rate is None
            or pos_emb is None
            or pos_emb.shape[:2] != (1, 2 * length - 1)
            or (masked and attention_mask.shape != (batch, 1, length))
            or not fuses_relative_attention(hidden_states, self.pos_bias_u)
        ):
            return super().forward(hidden_states, attention_mask, pos_emb, output_attentions)
        q = self.linear_q(hidden_states)
        y = relative_attention(
            q + self.pos_bias_u.flatten(),
            self.linear_k(hidden_states),
            self.linear_v(hidden_states),
            q + self.pos_bias_v.flatten(),
            self.linear_pos(pos_emb)[0],
            self.num_heads,
            attention_mask[:, 0].ne(0) if masked else None,
            rate,
        )
        return self.linear_out(y), None
