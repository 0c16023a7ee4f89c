"""The page of `evaluate --report`: plots and tables in one HTML file that needs nothing from the network."""

from html import escape
from typing import TYPE_CHECKING, Any

from pipeline.app.evaluation import as_words, best_baseline, ratio

if TYPE_CHECKING:
    from pipeline.run.evaluate import Result

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 360, 60, 200, 20, 40  # of the plot, in pixels
COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c4554d", "#787774")
LINES = 4  # of the grid behind the plot
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
"""


def page(figures: dict[str, Any], result: "Result") -> str:
    """Return the page. `figures` is the command's JSON document, `result` what it was made from."""
    title = f"afresh evaluate {figures['file']}"
    rejected = sum(figures["rejected"].values())
    facts = (
        f"{figures['events']:,} events in batches of {figures['batch']}, {rejected:,} rows rejected, "
        f"{'consumed items may come again' if figures['repeats'] else 'consumed items are left out'}, "
        f"{figures['seconds']:,.1f} s"
    )
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(facts)}. Each event was predicted before it was learned.</p>",
            "<h2>NDCG@10 over the stream</h2>",
            _plot(result),
            "<h2>Whole stream</h2>",
            _models_table(figures, result),
            *_grids(figures),
            "</body></html>",
            "",
        ]
    )


def _models_table(figures: dict[str, Any], result: "Result") -> str:
    best = best_baseline(result)
    head = [
        "model",
        "NDCG@10",
        "of best baseline",
        "HR@10",
        "MRR@10",
        "cold NDCG@10",
        "warm NDCG@10",
        "events/s",
    ]
    rows = [
        [
            name,
            f"{line['ndcg@10']:.4f}",
            ratio(line["ndcg@10"], best),
            f"{line['hr@10']:.4f}",
            f"{line['mrr@10']:.4f}",
            f"{line['cold']['ndcg@10']:.4f}",
            f"{line['warm']['ndcg@10']:.4f}",
            f"{line['events_per_s']:,.0f}",
        ]
        for name, line in figures["models"].items()
    ]
    return _table(head, rows)


def _grids(figures: dict[str, Any]) -> list[str]:
    rows = [
        [name, as_words(each["settings"]), f"{each['ndcg@10']:.4f}"]
        for name, line in figures["models"].items()
        for each in line.get("grid", [])
    ]
    if not rows:
        return []
    heading = (
        "<h2>Settings of the baselines</h2><p>The best on this very stream stands in the table above.</p>"
    )
    return [heading, _table(["baseline", "setting", "NDCG@10"], rows)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{cells}</tr>\n{body}\n</table>"


def _plot(result: "Result") -> str:
    """Draw each model's NDCG@10 in equal parts of the stream."""
    best = result.best()
    values = {name: [part["ndcg@10"] for part in line.curve] for name, line in best.items()}
    top = max((max(curve) for curve in values.values() if curve), default=0.0) * 1.05 or 1.0
    inner = WIDTH - LEFT - RIGHT

    def x_of(events: int) -> float:
        return LEFT + inner * events / max(result.events, 1)

    def y_of(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)

    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="NDCG@10 of each model over the stream">'
    ]
    for step in range(LINES + 1):
        value, events = top * step / LINES, result.events * step // LINES
        y, x = y_of(value), x_of(events)
        out.append(f'<line x1="{LEFT}" x2="{LEFT + inner}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3f}</text>')
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{events:,}</text>')
    for place, (name, curve) in enumerate(values.items()):
        colour = COLOURS[place % len(COLOURS)]
        points = " ".join(
            f"{x_of(events):.1f},{y_of(value):.1f}"
            for events, value in zip(result.curve_events, curve, strict=True)
        )
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = TOP + 12 + 20 * place
        out.append(f'<text x="{LEFT + inner + 16}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*out, f'<text x="{LEFT}" y="{HEIGHT - 4}">events</text>', "</svg>"])
