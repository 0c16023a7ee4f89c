"""`afresh check`: check everything before the first start, and name the fix of each problem."""

import argparse
import logging
import os

from pipeline.settings import Settings

HELP = """Check configuration, broker, rights, topics and records, and name the fix of each problem.

Each line is ok, warn or fault. Exit code 0 without a fault, else 2. The newest 1,000 records of each events
topic are decoded as the service does, and their keys are compared with their partitions. Nothing is changed
and no group is joined; only --create-topics creates the topics that are missing."""
EXAMPLE = "afresh check --config afresh.toml\nafresh check --create-topics --json"
FAULTY = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument("--create-topics", action="store_true", help="create the topics that don't exist")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line of stdout")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the findings; return 2 when one is a fault, else 0."""
    from pipeline.app.check.checks import all_findings
    from pipeline.app.check.findings import Level, as_json, show  # help needs no client and no numpy
    from pipeline.app.config import resolve
    from pipeline.service.clock import SystemClock

    if args.log_level == "info":  # the findings report what reading a checkpoint logs
        logging.getLogger().setLevel(logging.WARNING)
    _, origins = resolve(args.config, args.sets, os.environ)
    findings = all_findings(settings, origins, args.create_topics, SystemClock().now_ms)
    if args.json:
        found = list(findings)
        print(as_json(found, settings, origins))
    else:
        found = show(findings, settings, origins)
    return FAULTY if any(finding.level is Level.FAULT for finding in found) else 0
