# SPDX-License-Identifier: Apache-2.0
"""espeak-ng by ctypes: text to phonemes, and text to synthetic speech with exact phoneme times.

The library (GPL-3.0-or-later, from the optional package espeakng-loader) holds global state and is
not thread-safe: one process, one call at a time. What comes out is formant synthesis, never real
speech.
"""

import atexit
import ctypes
import functools
import os
import re
import shutil
import tempfile
import threading
import unicodedata
from dataclasses import dataclass

import numpy as np

from sniper.tts.errors import SpeechError, require

SAMPLE_RATE = 22050
# Pause tokens: the punctuation that ends a clause. espeak's rise or fall depends on it too.
PAUSES = (",", ";", ":", ".", "!", "?")

_EVENT_PHONEME, _EVENT_END = 7, 5
_SYNCHRONOUS, _PHONEME_EVENTS, _IPA, _NO_EXIT = 2, 0x1, 0x2, 0x8000
_UTF8 = 1
_PHONEME_MODE = 0x02 | ord("_") << 8  # IPA, phonemes separated by "_"
# Longer data paths overflow a fixed buffer in the library.
_MAX_DATA_PATH = 150
# Zeros behind the speech: without them the closing pause is shorter than a frame.
_TRAILING_ZEROS = 2048
_SEED = 1


@dataclass(frozen=True)
class Clause:
    """Phonemes up to a pause, and the punctuation mark (one of PAUSES) that stands for it."""

    phones: tuple[str, ...]
    mark: str


@dataclass(frozen=True)
class Speech:
    """Synthetic speech with its alignment.

    Args:
        audio: `[n]` int16 at SAMPLE_RATE.
        phones: tokens, pauses included.
        starts: first sample of each token; the first is 0.
    """

    audio: np.ndarray
    phones: tuple[str, ...]
    starts: tuple[int, ...]


class _Id(ctypes.Union):
    # Eight bytes and no NUL when full, so a char pointer into it would read too far.
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_void_p), ("raw", ctypes.c_ubyte * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)

_PUNCTUATION = str.maketrans({"…": ".", "—": ",", "–": ",", "。": ".", "？": "?", "！": "!"})


# espeak ends a clause, without an audible pause, at the dot of a title.
_TITLES = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|Capt|Col|Gen|Lt|Rev|Hon|Jr|Sr|Messrs)\.(?=\s)")


def clean_text(text: str) -> str:
    """Plain text as espeak should see it: one line, without quotes and brackets.

    Quotes and brackets would put pauses inside a clause that no punctuation token stands for.
    """
    # Titles come first: the steps below take every dot that is left for the end of a clause.
    text = _TITLES.sub(r"\1", text)
    text = re.sub(r"\s+--?\s+|--", ", ", text.replace("—", ", ").replace("–", ", "))
    text = re.sub("[\"“”„«»*_<>|\\\\]|(?<!\\w)['‘’]|['’](?!\\w)", " ", text)
    text = re.sub(r"\s*[()\[\]{}]\s*", ", ", text)
    text = re.sub(r"\s+([,;:.!?…])", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r",+([;:.!?…])", r"\1", text)
    return re.sub(r"([,;:.!?…]),+", r"\1", text).strip(" ,")


class Espeak:
    """The library, initialised for one voice at a time; get it from `espeak()`."""

    def __init__(self) -> None:
        loader = require("espeakng_loader")
        try:
            self._lib = ctypes.CDLL(loader.get_library_path())
        except OSError as error:
            raise SpeechError(f"espeak-ng cannot be loaded: {error}") from error
        # ctypes takes every result for an int, and cuts a pointer in half.
        self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._lib.espeak_TextToPhonemes.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        data = _short_path(loader.get_data_path()).encode()
        options = _PHONEME_EVENTS | _IPA | _NO_EXIT
        rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data, options)
        if rate != SAMPLE_RATE:
            raise SpeechError(f"espeak-ng did not start with its data in {data.decode()}: {rate}")
        self._pieces: list[np.ndarray] = []
        self._events: list[tuple[int, int, bytes]] = []
        # The library keeps only a pointer: the object must live as long as this one.
        self._callback = _Callback(self._receive)
        self._lib.espeak_SetSynthCallback(self._callback)
        self._voice = ""
        self._lock = threading.Lock()

    def clauses(self, text: str, voice: str = "en-us") -> list[Clause]:
        """Text to phonemes, without making a sound.

        Args:
            text: any text; numbers and abbreviations are read by espeak-ng.
            voice: name of an espeak-ng voice.

        Returns:
            Clauses with at least one phoneme each; empty for a text without any word.

        Raises:
            SpeechError: no such voice.
        """
        with self._lock:
            self._set_voice(voice)
            return self._clauses(clean_text(text))

    def synthesize(self, text: str, voice: str = "en-us") -> Speech:
        """Speak `text`; the tokens are those of `clauses`.

        Equal bytes come only from the same calls in the same order since the process began.

        Raises:
            SpeechError: no such voice, no word in the text, or an alignment that does not match.
        """
        with self._lock:
            self._set_voice(voice)
            clean = clean_text(text)
            clauses = self._clauses(clean)
            if not clauses:
                raise SpeechError(f"no known phoneme in the text {text!r}")
            self._pieces, self._events = [], []
            # Breath noise comes from a random generator that runs on from call to call.
            self._lib.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
            encoded = clean.encode()
            self._lib.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
            zeros = np.zeros(_TRAILING_ZEROS, dtype=np.int16)
            audio = np.concatenate([*self._pieces, zeros])
            phones, starts = _align(self._events, clauses, text)
        return Speech(audio, phones, starts)

    def _set_voice(self, voice: str) -> None:
        if voice != self._voice:
            # British English and French are files named en and fr, and known by their languages.
            asked = _Voice(languages=voice.encode())
            if not voice or (
                self._lib.espeak_SetVoiceByName(voice.encode()) != 0
                and self._lib.espeak_SetVoiceByProperties(ctypes.byref(asked)) != 0
            ):
                raise SpeechError(f"espeak-ng has no voice {voice!r}; try en-us, en-us+f2 or en-gb")
            self._voice = voice

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            # A copy: the library writes the next piece into the same memory.
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != 0:
            event = events[index]
            name = bytes(event.id.raw).split(b"\0")[0]
            self._events.append((event.type, event.sample, name))
            index += 1
        return 0

    def _clauses(self, text: str) -> list[Clause]:
        buffer = ctypes.create_string_buffer(text.encode())
        base = ctypes.addressof(buffer)
        pointer = ctypes.c_void_p(base)
        found = []
        # The library moves the pointer clause by clause, and clears it at the end of the text.
        while pointer.value is not None:
            start = pointer.value - base
            ipa = self._lib.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, _PHONEME_MODE)
            end = len(buffer) - 1 if pointer.value is None else pointer.value - base
            # Foreign words come with language switches such as "(fr)".
            plain = re.sub(r"\([a-z-]+\)", "", (ipa or b"").decode())
            phones = tuple(phone for phone in re.split(r"[\s_]+", plain) if phone)
            if phones:
                source = buffer.raw[start:end].decode(errors="ignore")
                found.append(Clause(phones, _mark(source, last=pointer.value is None)))
        return found


def _mark(source: str, last: bool) -> str:
    """The punctuation that ended a clause; espeak reads up to a few characters past it."""
    tail = source.translate(_PUNCTUATION)[-1 if last else -4 :]
    marks = [char for char in tail if char in PAUSES]
    # Without punctuation espeak cuts what is too long for its buffer, and the end of the text.
    return marks[-1] if marks else "." if last else ","


def _same_phone(spoken: bytes, written: str) -> bool:
    """Compare an event's name, cut at 8 bytes, with a phoneme; stress may differ.

    A clause of weak words only ("And, so on") is written without stress and spoken with one.
    """
    stress = "\u02c8\u02cc"
    if len(spoken) == 8:
        name = spoken.decode(errors="ignore").lstrip(stress)
        return written.lstrip(stress).startswith(name)
    return spoken.decode().lstrip(stress) == written.lstrip(stress)


def _align(
    events: list[tuple[int, int, bytes]], clauses: list[Clause], text: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Put the event times on the clauses' tokens.

    Pauses inside a clause (none of which is longer than a few ms) count to the phoneme before them.
    """
    groups: list[list[tuple[int, bytes]]] = []
    current: list[tuple[int, bytes]] = []
    pauses: list[int] = []
    pause = None
    for kind, sample, name in events:
        if kind == _EVENT_PHONEME and name:
            current.append((sample, name))
            pause = None
        elif kind == _EVENT_PHONEME and pause is None:
            pause = sample
        elif kind == _EVENT_END and current:
            groups.append(current)
            pauses.append(sample if pause is None else pause)
            current, pause = [], None
    phones: list[str] = []
    starts: list[int] = []
    for clause, group, pause_start in zip(clauses, groups, pauses, strict=False):
        spoken = [name for _, name in group]
        if len(spoken) != len(clause.phones) or not all(map(_same_phone, spoken, clause.phones)):
            break
        phones += [*clause.phones, clause.mark]
        starts += [*(sample for sample, _ in group), pause_start]
    # Synthesis and text go through the library apart; where they disagree the times would be on
    # other phones.
    if len(clauses) != len(groups) or len(phones) != sum(len(c.phones) + 1 for c in clauses):
        raise SpeechError(f"espeak-ng spoke other phonemes than it wrote for {text!r}")
    return tuple(phones), (0, *starts[1:])


def _short_path(path: str) -> str:
    """`path` itself, or a short link to it where the library's buffer would overflow."""
    if len(os.fsencode(path)) <= _MAX_DATA_PATH:
        return path
    folder = tempfile.mkdtemp(prefix="espeak-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = os.path.join(folder, "d")
    # A link and no copy: the data are megabytes.
    os.symlink(path, link)
    return link


@functools.cache
def espeak() -> Espeak:
    """The process's one instance; the library is loaded at the first call."""
    return Espeak()


def has_espeak() -> bool:
    """Whether espeak-ng is installed and starts."""
    try:
        espeak()
    except SpeechError:
        return False
    return True


def word_phones(word: str, voice: str) -> tuple[str, ...]:
    """espeak-ng's phonemes of a word; none where the voice does not know its letters: it then says
    what they are ("Chinese letter, Chinese letter"), or nothing, which nobody would read.

    Raises:
        SpeechError: no such voice.
    """
    found = _phones(word, voice)
    heard = f" {_bare(found)} "
    # Marks have no sound of their own, and are named by themselves where they are read in words.
    marks = (_said_of(char, voice) for char in dict.fromkeys(word) if not char.isalpha())
    named = any(name and f" {name} " in heard for name in marks)
    return () if named or unknown_letters(word, voice) else found


def unknown_letters(text: str, voice: str) -> list[str]:
    """Letters of a text that a voice does not know, each once."""
    return [char for char in dict.fromkeys(text) if char.isalpha() and _said_of(char, voice)]


@functools.lru_cache(maxsize=100_000)
def _said_of(letter: str, voice: str) -> str:
    """What a voice says of each letter of a script that it does not know; "" of all others."""
    script, kind = _script(letter)
    if script in ("", "LATIN", "COMBINING") or kind not in "LM":
        return ""
    near = [chr(max(0, ord(letter) + step)) for step in (0, 3, -3, 7, -7, 12, -12, 20, -20)]
    same = [char for char in near if _script(char) == (script, kind)][:5]
    heard = [_bare(_phones(char, voice)).split() for char in same]
    common = 0
    while len({tuple(sounds[: common + 1]) for sounds in heard}) == 1 and common < len(heard[0]):
        common += 1
    # Over all voices and scripts, letters that are read have none in common, others four and more.
    return " ".join(heard[0][:common]) if len(heard) > 2 and common >= 4 else ""


def _script(letter: str) -> tuple[str, str]:
    """The first word of a sign's name, and the kind that it is of: a letter, a mark."""
    return unicodedata.name(letter, "").partition(" ")[0], unicodedata.category(letter)[0]


def _phones(text: str, voice: str) -> tuple[str, ...]:
    return tuple(phone for clause in espeak().clauses(text, voice) for phone in clause.phones)


def _bare(phones: tuple[str, ...]) -> str:
    """Phonemes without their stress, which depends on what stands around them."""
    return " ".join(re.sub("[ˈˌ]", "", phone) for phone in phones)
