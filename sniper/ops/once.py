# SPDX-License-Identifier: Apache-2.0
"""What is made of a tensor once for all who ask for it, as the layers of a model do of a mask.

Each layer would make it anew otherwise, by kernels that take longer to launch than to run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")
# By tensor: weak, since what was made in one step is nobody's in the next.
_made = WeakTensorKeyDictionary()


def made_once(t: Tensor, what: Hashable, make: Callable[[], T]) -> T:
    """`make()`, or what it gave before while nobody has written to the tensor since.

    Args:
        t: what is made depends on its contents; equal views of one tensor count as the same.
        what: tells apart what is made of one tensor.
        make: called where nothing is kept.
    """
    # Inference mode counts no versions.
    if t.is_inference():
        return make()
    # By the tensor that it is a view of: each layer makes a view of its own.
    base = t if t._base is None else t._base
    # What a recording made is made anew when it is replayed, and what was made before is not.
    recorded = t.is_cuda and torch.cuda.is_current_stream_capturing()
    kind = (t._version, t.shape, t.stride(), t.storage_offset(), recorded)
    kept: dict[Hashable, tuple[Any, Any]] | None = _made.get(base)
    if kept is None:
        kept = _made[base] = {}
    made = kept.get(what)
    if made is None or made[0] != kind:
        made = kept[what] = kind, make()
    return made[1]
