"""`afresh train`: train on a recorded file, for a warm start of the service."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

import msgspec

from pipeline.app.evaluation import add_evaluation_options, document, evaluate_file, show
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.persistence.files import UrlFolder

HELP = """Learn a recorded file and save a checkpoint that the service starts from; nothing is published.

A worker with checkpoint.path = PATH and no checkpoint of its own starts with the items, parameters, counts,
metrics and users of the file; so does each of several workers. Use the same [events], [model] and [rank]: the
rules of a changed configuration apply, and another model.dim resets the model. A worker reads the topic from
the group's commit, at first from the earliest record: it should not hold the file's events again. A file that
is not in order of time is sorted first, where it has at most 10,000,000 events."""
EXAMPLE = "afresh train history.csv.gz --checkpoint ./state\nafresh run --set checkpoint.path=./state"
PROBE = "writable"  # a file that is written and deleted to test access


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_evaluation_options(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="a new or empty folder, or any fsspec URL"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Train and save; return 0. Raise `UsageError` for a file without events, or a folder with files."""
    from pipeline.persistence.checkpoint import TRAINED, Checkpoints  # help needs no torch
    from pipeline.service.clock import SystemClock
    from pipeline.service.prequential import as_served

    before = settings.checkpoint
    journal = before.journal if before.journal != before.path else ""  # it follows a new path
    settings = msgspec.structs.replace(
        settings, checkpoint=msgspec.structs.replace(before, path=args.checkpoint, journal=journal)
    )
    folder = _new_folder(args.checkpoint)
    evaluation, tally = evaluate_file(args, settings, as_served(settings))
    kafka = msgspec.structs.replace(settings.kafka, worker_id=TRAINED)
    checkpoints = Checkpoints(folder, msgspec.structs.replace(settings, kafka=kafka))
    manifest = checkpoints.save(evaluation.recommender, 0, SystemClock().now_ms())
    result = evaluation.result()
    show(args, settings, result, tally)  # after saving: an error of stdout loses nothing
    config = f" --config {args.config}" if args.config else ""
    path = f" --set checkpoint.path={args.checkpoint}" if before.path != args.checkpoint else ""
    print(
        f"checkpoint of {manifest.events_learned:,} events in {args.checkpoint}; continue with: "
        f"afresh run{config}{path}",
        file=sys.stderr,
    )
    if args.json:
        print(json.dumps({**document(args, result, tally), "checkpoint": args.checkpoint}))
    return 0


def _new_folder(path: str) -> "UrlFolder":
    """Return an empty folder that can be written. Raise `UsageError` for another one."""
    from pipeline.errors import UsageError
    from pipeline.persistence.files import UrlFolder

    folder = UrlFolder(path)
    if held := folder.names(""):  # a worker with a checkpoint resumes from that, and would ignore this one
        raise UsageError(
            f"--checkpoint {path}: holds {len(held)} files, such as {held[0]}; expected a new or empty folder"
        )
    try:  # before training, which may take hours
        folder.write(PROBE, b"")
        folder.delete(PROBE)
    except OSError as error:
        problem = f"can't be written ({error.strerror or error}); expected a folder with write access"
        raise UsageError(f"--checkpoint {path}: {problem}") from None
    return folder
