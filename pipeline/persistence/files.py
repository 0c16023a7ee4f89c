"""Whole files in a local folder or behind an fsspec URL, and arrays as safetensors bytes."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath

import fsspec
import msgspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.state.shards import Arrays


class UrlFolder:
    """The folder of a checkpoint, at a path or an fsspec URL. File names are relative and may hold slashes.

    `write` is atomic: it writes to a temporary name and renames. A local file is synced before the rename.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._root = fsspec.core.url_to_fs(url)
        self._local = isinstance(self._system, LocalFileSystem)

    def names(self, under: str) -> list[str]:
        """Return every file below `under`, sorted, without unfinished files; none if there is no folder."""
        self._system.invalidate_cache()
        root = PurePosixPath(self._root)
        found = (PurePosixPath(path) for path in self._system.find(f"{self._root}/{under}"))
        return sorted(str(path.relative_to(root)) for path in found if path.suffix != ".part")

    def read(self, name: str, size: int = -1) -> bytes:
        """Return a file, or its first `size` bytes. Raise FileNotFoundError when there is none."""
        with self._system.open(f"{self._root}/{name}", "rb") as file:
            data: bytes = file.read(size)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, or nothing under this name."""
        path = f"{self._root}/{name}"
        self._system.makedirs(os.path.dirname(path), exist_ok=True)
        with self._system.open(f"{path}.part", "wb") as file:
            file.write(data)
            if self._local:
                file.flush()
                os.fsync(file.fileno())
        if self._local:
            os.replace(f"{path}.part", path)
        else:
            self._system.mv(f"{path}.part", path)

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        with suppress(FileNotFoundError):
            self._system.rm_file(f"{self._root}/{name}")


class _Header(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


def pack(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Return the arrays as the bytes of a safetensors file."""
    # The format wants C order; ascontiguousarray would turn a single value into an array of one.
    ready = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    # Without arrays and metadata safetensors writes a header that it can't read again.
    return bytes(save(ready, dict(metadata) or None))


def metadata(data: bytes) -> dict[str, str]:
    """Return the metadata given to `pack`. Raise ValueError when the bytes are no safetensors file.

    >>> metadata(pack({}, {"format": "2"}))
    {'format': '2'}
    """
    length = int.from_bytes(data[:8], "little")
    try:
        found = msgspec.json.decode(data[8 : 8 + length], type=_Header)
    except msgspec.DecodeError as error:
        raise ValueError(f"no whole safetensors file: {error}") from None
    return found.metadata


def unpack(data: bytes) -> Arrays:
    """Return the arrays of a safetensors file. Raise ValueError when it is incomplete."""
    try:
        arrays: Arrays = load(data)
    except SafetensorError as error:
        raise ValueError(f"no whole safetensors file: {error}") from None
    return arrays
