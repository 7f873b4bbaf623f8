# SPDX-License-Identifier: Apache-2.0
"""`pytest bench`: scripts are importable from anywhere, and this machine's choices stay its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sniper.ops import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def choices_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured here does not decide what the user's runs execute. Freed memory is kept, for
    every provider, as training and the scripts do.
    """
    keep_freed_memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNIPER_CACHE_DIR", str(tmp_path_factory.mktemp("choices")))
        yield
