"""The manifest of a checkpoint: its files with checksums, its offsets, configuration and versions."""

import functools
import importlib.metadata
import platform
import re
from typing import Any

import msgspec

from pipeline.persistence.compatibility import check_format
from pipeline.persistence.files import UrlFolder
from pipeline.settings import Settings

SECRET = re.compile(r"password|secret|token|key|credential", re.IGNORECASE)
LIBRARIES = ("afresh", "numpy", "torch", "numba", "safetensors")


class Damaged(Exception):
    """A checkpoint is incomplete or unreadable."""


class FileSum(msgspec.Struct, frozen=True):
    """A file of the checkpoint: its name in the folder and its sha256."""

    name: str
    sha256: str


class PartitionOffset(msgspec.Struct, frozen=True):
    """The next offset to learn of a partition."""

    topic: str
    partition: int
    offset: int


class Manifest(msgspec.Struct, frozen=True):
    """The description that makes files a checkpoint."""

    format: int
    seq: int
    events_learned: int
    saved_at_ms: int
    worker_id: str
    offsets: list[PartitionOffset]
    model: FileSum
    shard: FileSum
    meta: dict[str, Any]
    configuration: dict[str, Any]
    versions: dict[str, str]
    topic_ids: dict[str, str]

    @property
    def name(self) -> str:
        """The manifest's own file name."""
        return f"{self.worker_id}/manifest-{self.seq:012d}.json"


class _Header(msgspec.Struct, frozen=True):
    # the same in every format
    format: int
    versions: Any = None


def read_manifest(folder: UrlFolder, name: str) -> Manifest:
    """Read a manifest. Raise `Damaged`, or `CheckpointError` for one of a newer format.

    The worker is given by the folder, not by the content: a renamed worker's folder can be moved.
    """
    try:
        data = folder.read(name)
        header = msgspec.json.decode(data, type=_Header)
        writer = header.versions.get("afresh", "") if isinstance(header.versions, dict) else ""
        check_format(f"checkpoint {folder.url}/{name}", header.format, str(writer))
        manifest = msgspec.json.decode(data, type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise Damaged(f"the manifest can't be read: {error}") from None
    worker = name.split("/")[0]
    if worker == manifest.worker_id:
        return manifest
    model = FileSum(f"{worker}/{manifest.model.name.rpartition('/')[2]}", manifest.model.sha256)
    return msgspec.structs.replace(manifest, worker_id=worker, model=model)


def write_manifest(folder: UrlFolder, manifest: Manifest) -> None:
    """Write a manifest under its name; this completes the checkpoint."""
    folder.write(manifest.name, msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def is_manifest(name: str) -> bool:
    """Return whether a file name is that of a manifest."""
    return re.search(r"/manifest-\d+\.json$", name) is not None


def seq_of(name: str) -> int:
    """Return the `seq` in a manifest's name: the number of the first batch that is not in the checkpoint.

    >>> seq_of("worker-0/manifest-000000000042.json")
    42
    """
    return int(name.rpartition("-")[2].removesuffix(".json"))


def without_secrets(settings: Settings) -> dict[str, Any]:
    """Return the configuration as plain values, without passwords and the like."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    kafka = plain["kafka"]
    kafka["options"] = {key: value for key, value in kafka["options"].items() if not SECRET.search(key)}
    del kafka["sasl_password"]
    return plain


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect numerical results."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
