# SPDX-License-Identifier: Apache-2.0
"""Text as people write it to the tokens that a model was trained with."""

from __future__ import annotations

from sniper.tts.text.sentences import split_sentences
from sniper.tts.text.text import Vocabulary, text_to_phones

__all__ = ["Vocabulary", "split_sentences", "text_to_phones"]
