"""The judge against trec_eval, the reference programme for ranking measures: the same figures to four digits.

    pip install pytrec-eval-terrier      # trec_eval behind Python, needed here alone
    python tests/benchmarks/judge.py FILE [--events 10000] [--repeats]

Judges the baseline `isgd` on a recorded file, as `afresh evaluate` does. Beside it, the ten best items of
each test are sorted out of all scores by numpy and handed to trec_eval with the item that was taken. Scores
hardly ever tie here, so the judge's expected gains over equal scores are plain gains; tests whose target does
tie are left out on both sides, and counted. Last line: JSON; exit code 1 where figures differ by 0.00005.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' helpers

import msgspec
import numpy as np
import pytrec_eval
from recordings import read_recording

from pipeline.evaluation.rank_metrics import gains_of
from pipeline.models.baselines.isgd import IsgdModel
from pipeline.models.model import Pool, Targets, TrainResult
from pipeline.recommender import Recommender
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Variant
from pipeline.settings import ModelConfig, RankConfig, Settings
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE
from pipeline.thread_limits import limit_threads

MEASURES = {"hr@10": "success_10", "ndcg@10": "ndcg_cut_10", "mrr@10": "recip_rank"}
NOW_MS = 1_780_000_000_000  # after every recorded event
SLACK = 0.00005


class Overheard:
    """Puts itself before a model's lessons, and writes down what trec_eval needs of every test."""

    def __init__(self, recommender: Recommender, model: IsgdModel) -> None:
        self.run: dict[str, dict[str, float]] = {}  # test -> item -> score, of the ten best
        self.taken: dict[str, dict[str, int]] = {}  # test -> the item that was taken
        self.gains: list[Sequence[float]] = []  # the judge's own figures of each
        self.ties = 0
        self._state, self._model, self._learn = recommender.state, model, model.learn
        model.learn = self.learn  # type: ignore[method-assign]

    def learn(self, queries: Queries, pool: Pool, targets: Targets) -> TrainResult:
        """Note the scores from before the lesson, then let the model have it."""
        scores_BM = self._model.vectors(queries.user_B) @ self._model.items.data.T
        scores_BM[:, self._state.items.status.data != LIVE] = -np.inf
        learned = self._learn(queries, pool, targets)
        gains = np.stack(gains_of(learned.tested), axis=1)
        for b in np.flatnonzero(targets.tested_B).tolist():
            target, scores = int(targets.row_B[b]), scores_BM[b]
            barred = queries.barred[queries.border_B[b] : queries.border_B[b + 1]]
            scores[barred[barred >= 0]] = -np.inf
            if target >= 0 and np.count_nonzero(scores == scores[target]) > 1:
                self.ties += 1
                continue
            best = np.argsort(-scores)[:10]
            best = best[np.isfinite(scores[best])]
            test = str(len(self.taken))
            self.run[test] = {str(row): float(scores[row]) for row in best.tolist()}
            self.taken[test] = {str(target) if target >= 0 else "unknown": 1}
            self.gains.append(gains[b].tolist())
        return learned


def figures_of_trec(run: dict[str, dict[str, float]], taken: dict[str, dict[str, int]]) -> dict[str, float]:
    """Return what trec_eval says. It leaves tests without any list out: those count as misses here."""
    judge = pytrec_eval.RelevanceEvaluator(taken, {"success", "ndcg_cut", "recip_rank"})
    found = judge.evaluate({test: items for test, items in run.items() if items})
    return {
        name: sum(figures[measure] for figures in found.values()) / len(taken)
        for name, measure in MEASURES.items()
    }


def main() -> int:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", action="store_true")
    options = parser.parse_args()
    limit_threads(1)
    rank = RankConfig(exclude_event_types=[] if options.repeats else None)
    settings = msgspec.structs.replace(Settings(model=ModelConfig(name="isgd")), rank=rank)
    evaluation = Evaluation(settings, [Variant("isgd", {})], SystemClock())
    model: Any = evaluation.recommender.models[0]
    heard = Overheard(evaluation.recommender, model.timed)
    evaluation.learn(read_recording(options.file, options.batch, now_ms=NOW_MS, limit=options.events), NOW_MS)
    whole = evaluation.recommender.quality.cumulative()["isgd"]
    theirs = figures_of_trec(heard.run, heard.taken)
    ours = dict(zip(MEASURES, np.mean(heard.gains, axis=0).tolist(), strict=True))
    print("| measure | judge | trec_eval | judge, tests that tie included |\n|---|---|---|---|")
    for name in MEASURES:
        print(f"| {name} | {ours[name]:.6f} | {theirs[name]:.6f} | {whole[name]:.6f} |")  # type: ignore[literal-required]
    differ = [name for name in MEASURES if abs(ours[name] - theirs[name]) >= SLACK]
    print(json.dumps({
        "tests": len(heard.taken), "ties": heard.ties, "judge": ours, "trec_eval": theirs, "differ": differ,
    }))  # fmt: skip
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
