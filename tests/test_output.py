"""A command completes its work even where its output can't be written; the exit code reports that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.app import cli

SMALL = ("--set", "model.attention.dim=8", "--set", "model.attention.history=6")
START = "import sys\nfrom pipeline.app import cli\n{code}\nsys.exit(cli.main(sys.argv[1:]))"
FULL = "afresh: stdout can't be written: No space left on device; everything else is done\n"
# `watch` without a broker: an endless stream of one ranking
ENDLESS = """import types; m = types.ModuleType('m'); m.Wanted = lambda *each: each
m.watch = lambda *each: ('x' * 1000 for _ in iter(int, 1)); sys.modules['pipeline.app.watching'] = m"""


def ended(kind: str, *args: object, code: str = "0") -> tuple[int, str]:
    """Run a command with a stdout that can't be written; return its exit code and its stderr."""
    command = [sys.executable, "-c", START.format(code=code), *map(str, args)]
    if kind == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    if kind == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        read, stdout = os.pipe()
        os.close(read)
    try:
        process = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    finally:
        os.close(stdout)
    return process.returncode, process.stderr


@pytest.mark.parametrize(
    ("kind", "code", "said"), [("broken", cli.READER_CLOSED, ""), ("full", 1, FULL), ("closed", 0, "")]
)
@pytest.mark.parametrize("args", [("--help",), ("evaluate", "--help")])
def test_output_that_is_lost_ends_a_command(kind: str, code: int, said: str, args: tuple[str, ...]) -> None:
    assert ended(kind, *args) == (code, said)


@pytest.mark.parametrize(("kind", "code"), [("broken", cli.READER_CLOSED), ("full", 1)])
def test_a_command_without_an_end_ends_when_its_reader_does(kind: str, code: int) -> None:
    assert ended(kind, "watch", code=ENDLESS)[0] == code


WITH_RUN = """import types; m = types.ModuleType('m'); m.HELP = m.EXAMPLE = ''; m.add_arguments = repr
m.run = lambda *_: {body}; sys.modules['pipeline.app.commands.run'] = m"""


def test_a_closed_stderr_does_not_end_a_command() -> None:
    body = "[print('x' * 9000, file=sys.stderr) for _ in range(9)] and print('done')"
    read, stderr = os.pipe()
    os.close(read)
    code = START.format(code=WITH_RUN.format(body=body))
    command = [sys.executable, "-c", code, "run", "--log-level", "error"]
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False
    )
    os.close(stderr)
    assert (process.returncode, process.stdout) == (0, "done\n")


def test_the_work_is_done_where_stdout_can_not_be_written(tmp_path: Path) -> None:
    file, state, page = tmp_path / "events.csv", tmp_path / "state", tmp_path / "page.html"
    rows = [f"u{k % 9},i{k % 17},{1_700_000_000 + k}\n" for k in range(300)]
    file.write_text("user,item,timestamp\n" + "".join(rows), "utf-8")
    code, said = ended("full", "train", file, "--checkpoint", state, *SMALL)
    assert (code, said.endswith(FULL)) == (1, True)
    assert "checkpoint of 300 events" in said
    code, said = ended("broken", "inspect", "--checkpoint", state)
    assert (code, said) == (cli.READER_CLOSED, "")
    options = ("--models", "popularity", "--report", page, "--json", *SMALL)
    code, said = ended("closed", "evaluate", file, *options)
    assert code == 0
    assert "Traceback" not in said
    assert page.stat().st_size > 10_000
