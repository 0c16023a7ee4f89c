"""Run a benchmark on this checkout and on an older commit, in turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Yield the folder of a checkout: `revision` itself where it is a folder, or a worktree of that commit
    that is removed at the end.
    """
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
    """Run Python with these arguments on the code of a checkout, one BLAS thread; return its last line of
    JSON.
    """
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1") | {"PYTHONPATH": str(code)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=code, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{code}: {' '.join(arguments)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
