"""`afresh check`: is everything there, and what is to be done where it isn't."""

import argparse
import logging
import os
import time

from pipeline.settings import Settings

HELP = """Look at configuration, broker, rights, topics and records, and say what to mend and how.

Each line is ok, warn or fault. Exit code 0 when there is no fault, else 2. The newest 1,000 records of each
events topic are decoded as the service would, and their keys are held against their partitions. Nothing is
changed and no group is joined; --create-topics alone makes the topics that are missing."""
EXAMPLE = "afresh check --config afresh.toml\nafresh check --create-topics --json"
FAULTY = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options."""
    parser.add_argument("--create-topics", action="store_true", help="create the topics that don't exist")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line of stdout")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the findings; 0 when none is a fault, else 2."""
    from pipeline.app.check.everything import all_findings
    from pipeline.app.check.findings import Level, count  # the clients and numpy are not needed for help
    from pipeline.app.check.view import as_json, show
    from pipeline.app.config import resolve

    if args.log_level == "info":  # what reading a checkpoint logs stands in the findings
        logging.getLogger().setLevel(logging.WARNING)
    _, origins = resolve(args.config, args.sets, os.environ)
    findings = all_findings(settings, origins, args.create_topics, lambda: time.time_ns() // 1_000_000)
    if args.json:
        found = list(findings)
        print(as_json(found, settings, origins))
    else:
        found = show(findings, settings, origins)
    return FAULTY if count(found, Level.FAULT) else 0
