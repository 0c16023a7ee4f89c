"""What the benchmarks share: options, Markdown tables, patches, and runs on two commits in turns."""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parents[2]
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
STARTED_S = time.monotonic()
Patch = tuple[Any, str, Any]  # a module or class, a name in it, its value during a trial

sys.path.insert(0, str(HERE / "tests"))  # the tests' helpers


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the module's docstring as its help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def integers(text: str) -> list[int]:
    """Parse whole numbers, separated by commas; none in an empty text."""
    return [int(part) for part in text.split(",") if part]


def print_row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(*cells: object) -> None:
    """Print the first two lines of a Markdown table."""
    print_row(*cells)
    print("|---" * len(cells) + "|")


def print_result(**result: object) -> None:
    """Print the last line: JSON, with the seconds since the start."""
    print(json.dumps(result | {"seconds": round(time.monotonic() - STARTED_S, 1)}))


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean, a value of 0 as one in a billion."""
    return statistics.geometric_mean(max(value, 1e-9) for value in values)


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def patched(patches: Iterable[Patch]) -> Iterator[None]:
    """Set names, and set them back."""
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(patch.object(*each))
        yield


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Yield the folder of a checkout: `revision` itself if it is a folder, else a temporary worktree."""
    if Path(revision).is_dir():
        yield Path(revision).resolve()
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "checkout")
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run_on(code: Path, arguments: Sequence[str]) -> Any:
    """Run Python on the code of a checkout, with one BLAS thread; return its last line of JSON."""
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"PYTHONPATH": str(code)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=code, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{code}: {' '.join(arguments)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
