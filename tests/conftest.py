# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: the same seeds, two threads, and no luck with uninitialised memory."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers whatever ran before, on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nan_filled_empty() -> Iterator[None]:
    """Uninitialised memory holds NaN, so that an element nobody writes cannot look right by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what torch.empty and its kin return
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
