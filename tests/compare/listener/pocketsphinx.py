# SPDX-License-Identifier: Apache-2.0
"""What a comparison asks of a recogniser, without listening: pocketsphinx takes four seconds to
make words of a sentence that is hardly speech.

It hears one word for each quarter of a second.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

WORD_BYTES = 16_000 // 4 * 2


class Config:
    def __init__(self, **settings: Any):
        assert settings.get("cmn") == "batch"


class Decoder:
    def __init__(self, config: Config):
        self._bytes: int | None = None

    def reinit_feat(self) -> None:
        self._bytes = None

    def start_utt(self) -> None:
        assert self._bytes is None, "what was heard before is not forgotten"

    def process_raw(self, data: bytes, full_utt: bool) -> None:
        assert full_utt
        self._bytes = len(data)

    def end_utt(self) -> None:
        assert self._bytes is not None

    def hyp(self) -> SimpleNamespace | None:
        count = (self._bytes or 0) // WORD_BYTES
        return SimpleNamespace(hypstr=" ".join(["A(2)"] * count)) if count else None
