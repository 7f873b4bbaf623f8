# SPDX-License-Identifier: Apache-2.0
"""One memory-mappable file per split, in the safetensors format.

Tensors are written one after the other as they come, so a corpus never sits in memory; readers map
the file, so any number of worker processes share one copy of it in the page cache.

Layout for N utterances, F frames and K tokens in all:
    mel `[F, n_mels]` float32, mel_offsets `[N + 1]` int64, tokens and durations `[K]` int32,
    pitch and energy `[K]` float32 (NaN = no value), token_offsets `[N + 1]` int64.
Nothing is normalised; names, texts, statistics, vocabulary and settings lie in the metadata.

Source: the safetensors format: u64 length of a JSON header, the header, raw little-endian data.
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sniper.tts.errors import SpeechError
from sniper.tts.files import atomic_write

_DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorStream:
    """A tensor that is written piece by piece.

    Args:
        dtype: float32, int32 or int64.
        shape: of the whole tensor.
        pieces: arrays that follow each other along the first dimension.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]


def write_tensors(path: Path, tensors: dict[str, TensorStream], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, in constant memory.

    Args:
        tensors: in the order of the file; 8-byte types first keeps everything aligned.
        metadata: free text under names.

    Raises:
        ValueError: the pieces of a tensor do not add up to its shape.
    """
    header: dict[str, dict] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype)
        end = offset + int(np.prod(tensor.shape)) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    # By hand and not by the library, which wants whole tensors in memory.
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # Spaces up to a multiple of 64, so that mapped arrays are aligned.
    text += b" " * (-(len(text) + 8) % 64)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            written = 0
            for piece in tensor.pieces:
                data = np.ascontiguousarray(piece, dtype=tensor.dtype)
                file.write(data.data)
                written += data.nbytes
            begin, end = header[name]["data_offsets"]
            # Before the file gets its name: a generator that ended early must not leave a file that
            # looks whole.
            if written != end - begin:
                raise ValueError(f"{name}: {written} bytes came, {end - begin} were announced")


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map a safetensors file read-only.

    Returns:
        Arrays by name, backed by the file, and the metadata.

    Raises:
        SpeechError: missing, cut off, or not in this format.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            # The format's own limit; a larger number is some other kind of file.
            if length > 100_000_000:
                raise ValueError
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        # A plain view of the map: slicing np.memmap itself is several times slower.
        data = np.asarray(np.memmap(path, mode="r", dtype=np.uint8))[8 + length :]
        # Views on the map: nothing is read before somebody asks for it.
        arrays = {name: _view(data, entry) for name, entry in header.items()}
    except FileNotFoundError as error:
        raise SpeechError(
            f"no such feature file: {path}; make it with python -m sniper.prepare"
        ) from error
    except OSError as error:
        raise SpeechError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError):
        raise SpeechError(
            f"{path} is cut off or not a feature file; make it anew with python -m sniper.prepare "
            "and --force"
        ) from None
    return arrays, metadata


def _view(data: np.ndarray, entry: dict) -> np.ndarray:
    """One tensor in the bytes that follow the header; a ValueError where it does not lie in them.

    numpy's slices take any bounds, and would give a tensor of other places in the file.
    """
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if any(type(size) is not int or size < 0 for size in (*shape, begin)):
        raise ValueError
    if end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
        raise ValueError
    return data[begin:end].view(dtype).reshape(shape)
