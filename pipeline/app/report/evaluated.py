"""The page of `evaluate --report`."""

from pathlib import Path
from typing import Any

from pipeline.app.evaluation import as_words
from pipeline.app.report.gather import Extra, Fact, gather, write
from pipeline.app.report.page import GridRow, page
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Result


def write_report(
    path: Path, figures: dict[str, Any], evaluation: Evaluation, result: Result, notes: list[str]
) -> None:
    """Write the page. `figures` is the command's JSON document, `notes` are shown at the top.

    Raise `UsageError` when it can't be written.
    """
    models = {
        line.variant.name: Extra(label, figures["models"][label]["events_per_s"])
        for label, line in result.best().items()
    }
    name = Path(figures["file"]).name
    again = "may be recommended again" if figures["repeats"] else "are excluded from a user's lists"
    facts = [
        Fact("file", f"{name}, {sum(figures['rejected'].values()):,} rows rejected"),
        Fact("batches", f"of {figures['batch']} events, predicted, then learned, together"),
        Fact("consumed items", again),
        Fact("time taken", f"{figures['seconds']:,.1f} s"),
    ]
    grids = [
        GridRow(model, as_words(each["settings"]), each["ndcg@10"], each["settings"] == line["settings"])
        for model, line in figures["models"].items()
        for each in line.get("grid", [])
    ]
    recommender = evaluation.recommender
    report = gather(recommender, models, f"afresh evaluate: {name}", facts, recommender.settings, notes)
    write(path, "--report", page(report, SystemClock().now_ms(), grids))
