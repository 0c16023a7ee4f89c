"""Check this machine: import names, the checkpoint folder, the port of the metrics.

Nothing is written: folders are asked for their access rights, the journal's lock is tried as a reader.
"""

import fcntl
import importlib.util
import os
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

from pipeline.app.check.findings import Finding, fault, ok, warn
from pipeline.app.config_rules import Origins
from pipeline.errors import AfreshError
from pipeline.events.batch import TopicPartition
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.service.health import split_address
from pipeline.settings import Settings

NAMES = ("pipeline", "consumers", "producers")
OURS = "afresh"
UNREADABLE = (AfreshError, OSError, ImportError, ValueError)  # of a checkpoint


def check_machine(settings: Settings, origins: Origins) -> Iterator[Finding]:
    """Yield the findings about configuration, installation and this machine."""
    values = "every value is the default"
    if origins:
        sources = ", ".join(sorted(set(origins.values())))
        values = f"valid; {len(origins)} set by {sources}, the others are defaults"
    yield ok("configuration", values)
    yield from import_names(packages_distributions(), Path(__file__).parents[3])
    yield from checkpoint(settings)
    yield port(settings.metrics.address, worker_runs(settings))


def import_names(owners: Mapping[str, list[str]], root: Path) -> Iterator[Finding]:
    """Yield the owner of each import name.

    `owners` maps each name to the distributions that install it; `root` is the folder this process runs from.
    """
    ours = []
    for name in NAMES:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != OURS})
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).parents[1] if spec and spec.origin else None
        about = f"import name {name}"
        if others:
            found = f"is installed by {' and '.join(others)} too: each overwrites files of the other"
            fix = f"pip uninstall {' '.join(others)}, then pip install --force-reinstall {OURS}"
            yield fault(about, found, f"give {OURS} an environment of its own, or {fix}")
        elif place is None or place.resolve() != root.resolve():
            fix = "start afresh from another folder, or remove that one from PYTHONPATH"
            yield fault(about, f"comes from {place}, not from {root}", fix)
        else:
            ours.append(name)
    if len(ours) == len(NAMES):
        yield ok("import names", f"{', '.join(NAMES)} belong to {OURS}, in {root}")


def checkpoint(settings: Settings) -> Iterator[Finding]:
    """Yield the state of the checkpoint folder and of the journal's."""
    path, worker = settings.checkpoint.path, settings.kafka.worker_id
    if not path:
        found = "checkpoint.path is empty: nothing survives a restart"
        yield warn("checkpoint", found, "set checkpoint.path to a folder")
        return
    folders = [settings.checkpoint.journal] + ([] if "://" in path else [path])
    yield from map(_folder, dict.fromkeys(map(Path, folders)))
    about = f"checkpoint {path}"
    try:
        newest = Checkpoints(UrlFolder(path), settings).load()  # as a start does
    except UNREADABLE as error:
        yield fault(about, f"can't be read: {error}", "correct checkpoint.path, or do what the error says")
        return
    if newest is None:
        yield ok(about, f"{worker} has none yet and starts without one")
    else:
        yield ok(about, f"of {worker} is complete: {newest[0].events_learned:,} events learned")


def _folder(folder: Path) -> Finding:
    about = f"folder {folder}"
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    if not existing.is_dir():
        fix = "name a folder in checkpoint.path and checkpoint.journal"
        return fault(about, f"{existing} is no folder", fix)
    if not os.access(existing, os.W_OK | os.X_OK):
        uid = os.getuid()
        return fault(about, f"user id {uid} may not write {existing}", f"chown {uid} {existing}")
    return ok(about, "is writable" if existing == folder else "will be created")


def checkpoint_offsets(settings: Settings) -> dict[TopicPartition, int]:
    """Return the offsets that the checkpoint resumes from; {} without a checkpoint that can be read."""
    if not settings.checkpoint.path:
        return {}
    try:
        return Checkpoints(UrlFolder(settings.checkpoint.path), settings).offsets()
    except UNREADABLE:
        return {}


def worker_runs(settings: Settings) -> bool:
    """Return whether a process holds the journal of our `worker_id`."""
    lock = Path(settings.checkpoint.journal) / settings.kafka.worker_id / "journal.lock"
    if not settings.checkpoint.path or not lock.is_file() or not os.access(lock, os.R_OK):
        return False
    with lock.open() as file:  # closing releases the lock
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def port(address: str, running: bool) -> Finding:
    """Return whether the address of the metrics is free; our own worker may hold it when `running`."""
    if not address:
        return ok("metrics", 'metrics.address is "": no metrics, no health')
    host, number = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            found = f"can't be bound: {error.strerror or error}"
            if running:
                return ok(f"metrics {address}", f"{found} (held by the running worker)")
            to_do = "end the program that holds it, or choose another metrics.address"
            return fault(f"metrics {address}", found, to_do)
    return ok(f"metrics {address}", "is free")
