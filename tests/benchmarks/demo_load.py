"""Measure the CPU time of the processes of `afresh demo` at an event rate: pipeline, users, broker.

    python tests/benchmarks/demo_load.py [--events 30000] [--rate 2000]

Starts the demo and reads the CPU time of its processes from /proc twice a second. A share is CPU time by wall
time, 1 being one busy core, from SETTLE_S after the start of the sender to its end. Prints a table and one
last JSON line with the shares and the results of the demo. Linux.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench import parser_of, print_head, print_result, print_row

SETTLE_S = 3.0  # imports, the broker's first records
LOOK_S = 0.5
PARTS = {"pipeline.app.cli simulate": "users", "noida-db": "broker"}
RESULTS = ("events", "rankings", "events_per_s", "latency_p50_ms", "latency_p99_ms", "models", "uplift")


class Look(NamedTuple):
    """CPU seconds of a process at one moment (monotonic seconds)."""

    at_s: float
    cpu_s: float


def cpu_s(pid: int) -> float:
    """Return user and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below this one, by their ids."""
    found: dict[int, str] = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            command = Path(f"/proc/{child}/cmdline").read_bytes().decode().replace("\0", " ")
            found |= {child: command} | descendants(child)
    return found


def watch(demo: "subprocess.Popen[str]") -> dict[str, list[Look]]:
    """Look at the processes until the demo ends; return the looks of each part while the sender ran."""
    looks: dict[str, list[Look]] = {}
    while demo.poll() is None:
        now_s = time.monotonic()
        try:
            running = {"pipeline": demo.pid}
            for pid, command in descendants(demo.pid).items():
                running |= {part: pid for sign, part in PARTS.items() if sign in command.split("sh -c")[0]}
            if "users" in running:
                for part, pid in running.items():
                    looks.setdefault(part, []).append(Look(now_s, cpu_s(pid)))
        except (OSError, IndexError):  # one has just ended
            pass
        time.sleep(LOOK_S)
    return looks


def share(looks: list[Look]) -> float:
    """Return the CPU time by wall time once the start is over."""
    steady = [look for look in looks if look.at_s >= looks[0].at_s + SETTLE_S]
    return round((steady[-1].cpu_s - steady[0].cpu_s) / (steady[-1].at_s - steady[0].at_s), 3)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--events", default="30000")
    parser.add_argument("--rate", type=float, default=2_000.0, help="events a second")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pipeline.app.cli", "demo", "--set", "metrics.address="]
    command += ["--events", options.events, "--rate", str(options.rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        looks = watch(demo)
        printed = demo.communicate()[0]
    if demo.returncode:
        raise SystemExit(f"the demo ended with code {demo.returncode}")
    result = json.loads(printed.splitlines()[-1])
    shares = {part: share(seen) for part, seen in looks.items()}
    print_head("process", "CPU s", "cores, steady")
    for part, seen in looks.items():
        print_row(part, f"{seen[-1].cpu_s:.1f}", f"{shares[part]:.2f}")
    print_result(rate=options.rate, cores=shares, **{name: result[name] for name in RESULTS})


if __name__ == "__main__":
    main()
