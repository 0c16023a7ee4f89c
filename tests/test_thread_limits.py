"""Commands limit BLAS and OpenMP to `model.threads`, whatever the environment says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.service import Site

PROGRAM = str(Path(__file__).with_name("harness") / "thread_pools.py")
VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def run_program(*arguments: str, threads: int) -> dict[str, Any]:
    """Run a module with `threads` in the environment; return what `thread_pools.py` prints at its end."""
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=os.environ | dict.fromkeys(VARIABLES, str(threads)), check=True, timeout=60,
    )  # fmt: skip
    return pools_of(done.stdout)


def pools_of(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert found["pools"], "no library with threads was loaded"
    return found


@pytest.mark.kafka
def test_a_service_and_its_simulated_users_have_one_thread(
    embedded_broker: str, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "2")
    site = make_site(embedded_broker)
    service = site.start("run", program=PROGRAM)
    service.wait_state("ready")
    simulated = run_program(
        "pipeline.app.cli", "simulate", "--set", f"kafka.bootstrap_servers={embedded_broker}",
        "--set", f'topics.events=["{site.events}"]', "--events", "500", "--rate", "0", threads=2,
    )  # fmt: skip
    service.wait_learned(500)
    service.end()
    found = pools_of(service.printed())
    assert found["torch"] == 1
    assert {pool["kind"] for pool in found["pools"]} == {"blas", "openmp"}
    assert {pool["threads"] for pool in found["pools"] + simulated["pools"]} == {1}


def test_a_command_takes_model_threads_over_a_smaller_number_of_the_environment(tmp_path: Path) -> None:
    out = str(tmp_path / "events.csv")
    command = ("pipeline.app.cli", "simulate", "--events", "10", "--out", out, "--set", "model.threads=2")
    assert {pool["threads"] for pool in run_program(*command, threads=1)["pools"]} == {2}
