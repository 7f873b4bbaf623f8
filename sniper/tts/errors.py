# SPDX-License-Identifier: Apache-2.0
"""Errors whose text is the whole message: a command prints it as one line, without a traceback."""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType


class SpeechError(Exception):
    """Something in the user's data, settings or installation that one line can explain."""


class UtteranceError(SpeechError):
    """One utterance cannot be used; the rest of the corpus can."""


class OtherSettings(SpeechError):
    """A folder was begun with other settings than are asked for, or what says with which is
    damaged.
    """


class NothingUsable(SpeechError):
    """Not one utterance of a corpus can be used."""


class FolderInUse(SpeechError):
    """Another process works in a folder that only one may work in at a time."""


class FolderLost(SpeechError):
    """A folder that this process works in is not there any more, or is another process's."""


class MissingDependency(SpeechError):
    """An optional package is not installed."""


# module -> (name to install, extra of sniper-tts that brings it)
_PACKAGES = {
    "soundfile": ("soundfile", "tts"),
    "soxr": ("soxr", "tts"),
    "praatio": ("praatio", "tts"),
    "matplotlib": ("matplotlib", "tts"),
    # pyworld itself comes as source and needs a compiler.
    "pyworld": ("pyworld-prebuilt", "tts"),
    "tqdm": ("tqdm", "tts"),
    "yaml": ("pyyaml", "tts"),
    "safetensors": ("safetensors", "tts"),
    "h5py": ("h5py", "vocoder"),
    "espeakng_loader": ("espeakng-loader", "demo"),
    "pocketsphinx": ("pocketsphinx", "align"),
}


@contextlib.contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """What is warned of in the `with` block, each time it is, in other words.

    Args:
        change: of a warning's text.
    """
    told: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield
    finally:
        for each in told:
            text = change(str(each.message))
            warnings.warn_explicit(text, each.category, each.filename, each.lineno)


def require(module: str) -> ModuleType:
    """Import an optional module, or say in one line what to install.

    Args:
        module: dotted import name; its first part must be one of the known optional packages.

    Raises:
        MissingDependency: the package is absent or does not import.
    """
    package, extra = _PACKAGES[module.split(".")[0]]
    try:
        return importlib.import_module(module)
    # Not ModuleNotFoundError alone: a package that lacks its shared library is there and does not
    # import.
    except ImportError as error:
        raise MissingDependency(
            f"the Python package {package} is needed and cannot be imported ({error}): "
            f"pip install 'sniper-tts[{extra}]'"
        ) from error


def progress_bar(iterable: Iterable, label: str, total: int, done: int = 0, show: bool = True):
    """Utterances with a tqdm bar that shows the time left; a log gets a line every 10 s only."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return require("tqdm").tqdm(
        iterable,
        label,
        total=total,
        initial=done,
        unit="utt",
        mininterval=interval,
        disable=not show,
    )
