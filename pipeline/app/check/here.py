"""Look at this machine: who owns the import names, libraries, threads, the checkpoint folder, the port.

Nothing is written: a folder is asked for its access rights, a lock is tried as a reader.
"""

import fcntl
import importlib.util
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

from pipeline.app.check.findings import Finding, fault, ok, warn
from pipeline.app.config_rules import Origins
from pipeline.app.cpu_count import free_cores
from pipeline.errors import AfreshError
from pipeline.events.batch import TopicPartition
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.service.health import split_address
from pipeline.settings import Settings

NAMES = ("pipeline", "consumers", "producers")
OURS = "afresh"
SCARCE_BYTES = 1 << 30  # free disk below which a checkpoint may not fit


def judge_machine(settings: Settings, origins: Origins) -> list[Finding]:
    """Return the findings about configuration, installation and this machine."""
    running = worker_runs(settings)
    return [
        _configuration(origins),
        *import_names(packages_distributions(), Path(__file__).parents[3]),
        _libraries(),
        threads(settings.model.threads, free_cores()),
        *checkpoint(settings, running),
        *port(settings.metrics.address, running),
    ]


def _configuration(origins: Origins) -> Finding:
    if not origins:
        return ok("configuration", "every value is the default")
    sources = sorted(set(origins.values()))
    return ok("configuration", f"valid; {len(origins)} set by {', '.join(sources)}, the others are defaults")


def import_names(owners: Mapping[str, list[str]], root: Path) -> Iterator[Finding]:
    """Yield who owns the import names. `owners` maps each name to the distributions that install it; `root`
    is the folder that we run from."""
    ours = []
    for name in NAMES:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != OURS})
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).parents[1] if spec and spec.origin else None
        about = f"import name {name}"
        if others:
            text = f"is installed by {' and '.join(others)} too: each overwrites files of the other"
            mend = f"pip uninstall {' '.join(others)}, then pip install --force-reinstall {OURS}"
            yield fault(about, text, f"give {OURS} an environment of its own, or {mend}")
        elif place is None:
            yield fault(about, "is not there", f"pip install --force-reinstall {OURS}")
        elif place.resolve() != root.resolve():
            yield fault(
                about,
                f"comes from {place}, not from {root}",
                "start afresh from another folder, or take that one out of PYTHONPATH",
            )
        else:
            ours.append(name)
    if len(ours) == len(NAMES):
        yield ok("import names", f"{', '.join(NAMES)} are ours, in {root}")


def _libraries() -> Finding:
    """Return the versions of what afresh stands on."""
    found, missing = [f"python {platform.python_version()}"], []
    for line in requires(OURS) or []:
        name, _, rest = line.partition(";")
        library = re.split(r"[^\w.-]", name.strip())[0]
        if "extra" in rest or library == "editables":  # of an editable installation, for nobody's use
            continue
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            missing.append(library)
    if missing:
        return fault("libraries", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return ok("libraries", f"{OURS} {version(OURS)}: {', '.join(found)}")


def threads(wanted: int, cores: int) -> Finding:
    """Return whether `model.threads` has as many cores."""
    text = f"model.threads = {wanted}, {cores} core{'' if cores == 1 else 's'} free to use"
    if wanted > cores:
        return warn("threads", f"{text}: they wait for each other", f"set model.threads = {cores}")
    return ok("threads", text)


def checkpoint(settings: Settings, running: bool) -> Iterator[Finding]:
    """Yield how it stands with the checkpoint folder and the journal."""
    path, worker = settings.checkpoint.path, settings.kafka.worker_id
    if not path:
        yield warn(
            "checkpoint",
            "checkpoint.path is empty: nothing survives a restart",
            "set checkpoint.path to a folder",
        )
        return
    local = [Path(settings.checkpoint.journal)]
    if "://" not in path and Path(path) not in local:
        local.append(Path(path))
    for folder in local:
        yield from _folder(folder)
    if running:
        yield ok("worker", f"a process runs as {worker}: the journal is locked by it")
    yield _saved(settings)


def _folder(folder: Path) -> Iterator[Finding]:
    about = f"folder {folder}"
    there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    if not there.is_dir():
        yield fault(about, f"{there} is no folder", "name a folder in checkpoint.path and checkpoint.journal")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield fault(
            about, f"{there} may not be written by user id {os.getuid()}", f"chown {os.getuid()} {there}"
        )
    else:
        free = shutil.disk_usage(there).free
        text = f"{'can be written' if there == folder else 'will be made'}, {free / (1 << 30):.1f} GiB free"
        if free < SCARCE_BYTES:
            yield warn(about, text, "make room: a checkpoint that does not fit stops the worker")
        else:
            yield ok(about, text)


def _saved(settings: Settings) -> Finding:
    """Read the newest checkpoint as a start would."""
    path, worker = settings.checkpoint.path, settings.kafka.worker_id
    about = f"checkpoint {path}"
    try:
        checkpoints = Checkpoints(UrlFolder(path), settings)
        found, workers = checkpoints.load(), checkpoints.workers()
    except AfreshError as error:
        return fault(about, str(error), "do what the line says; afresh run would end with it")
    except (OSError, ImportError, ValueError) as error:
        return fault(about, f"can't be read: {error}", "correct checkpoint.path, or give access")
    others = [each for each in workers if each != worker]
    beside = f"; others there: {', '.join(others)}" if others else ""
    if found is None:
        return ok(about, f"{worker} has none yet and starts anew{beside}")
    manifest = found[0]
    return ok(about, f"that of {worker} is whole: {manifest.events_learned:,} events learned{beside}")


def learned_offsets(settings: Settings) -> dict[TopicPartition, int]:
    """Return what our checkpoint goes on from; nothing where none can be read, which `checkpoint` tells."""
    if not settings.checkpoint.path:
        return {}
    try:
        return Checkpoints(UrlFolder(settings.checkpoint.path), settings).offsets()
    except (AfreshError, OSError, ImportError, ValueError):
        return {}


def worker_runs(settings: Settings) -> bool:
    """Say whether a process holds the journal of our `worker_id`."""
    if not settings.checkpoint.path:
        return False
    try:
        file = os.open(
            Path(settings.checkpoint.journal) / settings.kafka.worker_id / "journal.lock", os.O_RDONLY
        )
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)  # and with it the lock
    return False


def port(address: str, running: bool) -> Iterator[Finding]:
    """Yield whether the address of the metrics can be had. `running`: our own worker may have it."""
    about = f"metrics {address}"
    if not address:
        yield ok("metrics", 'metrics.address is "": no metrics, no health')
        return
    host, number = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            text = f"can't be taken: {error.strerror or error}"
            if running:
                yield ok(about, f"{text} (by the worker that runs)")
            else:
                yield fault(about, text, "end the program that has it, or choose another metrics.address")
            return
    yield ok(about, "is free")
