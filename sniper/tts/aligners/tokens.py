# SPDX-License-Identifier: Apache-2.0
"""Words of a transcript as tokens for the learned aligner: phones of espeak-ng, or characters."""

from __future__ import annotations

from dataclasses import dataclass, field

from sniper.tts.errors import SpeechError, UtteranceError
from sniper.tts.text.normalize import normalize_english
from sniper.tts.text.words import characters, has_letter, is_english, pieces

SILENCE = "sil"
# (word, tokens) pairs; a silence has no word.
Spoken = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass
class TokenReader:
    """Reads transcripts; each word is looked up once.

    Args:
        language: name of an espeak-ng voice.
        phones: "espeak" or "characters".
        lexicon: word -> pronunciations, the first of which goes before espeak-ng's.
    """

    language: str
    phones: str
    lexicon: dict[str, list[str]]
    _found: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def spoken(self, text: str) -> Spoken:
        """Words with their tokens, and a silence at both ends and wherever there is a sign.

        Raises:
            UtteranceError: signs that cannot be read, or no word.
        """
        english = is_english(self.language)
        try:
            found = pieces(normalize_english(text) if english else text)
        except SpeechError as error:
            raise UtteranceError(str(error)) from error
        silence = ("", (SILENCE,))
        spoken: list[tuple[str, tuple[str, ...]]] = [silence]
        for piece in found:
            if has_letter(piece):
                word = piece if piece in self.lexicon else piece.strip("'-_")
                tokens = self._tokens(word)
                if not tokens:
                    raise UtteranceError(f"no phone for the word {word!r}")
                spoken.append((word, tokens))
            # Between two silences in a row no border could be found.
            elif piece.strip("'-_") and spoken[-1] != silence:
                spoken.append(silence)
        if len(spoken) < 2:
            raise UtteranceError("there is no word in its text")
        return tuple(spoken if spoken[-1] == silence else [*spoken, silence])

    def _tokens(self, word: str) -> tuple[str, ...]:
        if word not in self._found:
            if word in self.lexicon:
                tokens = tuple(self.lexicon[word][0].split())
            elif self.phones == "characters":
                tokens = characters(word)
            else:
                tokens = self._espeak(word)
            self._found[word] = tokens
        return self._found[word]

    def _espeak(self, word: str) -> tuple[str, ...]:
        from sniper.tts.text.espeak import word_phones

        if phones := word_phones(word, self.language):
            return phones
        raise UtteranceError(
            f"espeak-ng's voice {self.language} cannot read the word {word!r}: write it in letters "
            "that it knows, or give it a pronunciation with --lexicon"
        )
