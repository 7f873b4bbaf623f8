# SPDX-License-Identifier: Apache-2.0
"""ESPnet's attention of transformers and Conformers by our kernels; loaded where a model has one.

Its modules keep the weights of their last call in `attn`; by our kernels there are none, and `attn`
is None.
"""

from __future__ import annotations

from typing import Any

from espnet.nets.pytorch_backend.transformer import attention as espnet
from torch import Tensor, nn

from sniper.layers.dropout import drop_rate
from sniper.ops.attention import attention
from sniper.ops.relative_attention import fuses_relative_attention, relative_attention


def _rate(module: Any, query: Tensor, mask: Tensor | None, keys: int) -> float | None:
    """What the kernel is to drop, or None where ESPnet's own code has to run."""
    # Versions, and modules that earlier ones saved, differ in which of these they have.
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    if any(norm is not None and type(norm) is not nn.Identity for norm in norms):
        return None
    if getattr(module, "use_flash_attn", False) or getattr(module, "use_sdpa", False):
        return None
    # A mask of its own for each query is not one of keys.
    if mask is not None and mask.shape != (len(query), 1, keys):
        return None
    fused = fuses_relative_attention(query, module.linear_q.weight)
    return drop_rate(module.dropout) if fused else None


def _key_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, 0].ne(0)


class MultiHeadedAttention(espnet.MultiHeadedAttention):
    """The same function; in training for float32 on a CPU in one kernel each way.

    What `sniper.sparsify(fast_attention=True)` makes of those of a model.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        expand_kv: bool = False,
    ) -> Tensor:
        """`[B, T, C]`, twice `[B, S, C]` and a mask `[B, 1, S]` -> `[B, T, C]`."""
        rate = _rate(self, query, mask, key.shape[1])
        if not rate or expand_kv:
            more = (expand_kv,) if expand_kv else ()  # not every version has it
            return super().forward(query, key, value, mask, *more)
        q, k, v = self.linear_q(query), self.linear_k(key), self.linear_v(value)
        self.attn = None
        return self.linear_out(attention(q, k, v, self.h, _key_mask(mask), rate))


class RelPositionMultiHeadedAttention(espnet.RelPositionMultiHeadedAttention):
    """The same function; for float32 on a CPU in one kernel each way."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Thrice `[B, T, C]`, `[1, 2 T - 1, C]` and a mask `[B, 1, T]` -> `[B, T, C]`."""
        length = query.shape[1]
        rate = _rate(self, query, mask, length)
        known = pos_emb.shape[:2] == (1, 2 * length - 1)
        if rate is None or self.zero_triu or not known or key.shape[1] != length:
            return super().forward(query, key, value, pos_emb, mask)
        q = self.linear_q(query)
        self.attn = None
        y = relative_attention(
            q + self.pos_bias_u.flatten(),
            self.linear_k(key),
            self.linear_v(value),
            q + self.pos_bias_v.flatten(),
            self.linear_pos(pos_emb)[0],
            self.h,
            _key_mask(mask),
            rate,
        )
        return self.linear_out(y)
