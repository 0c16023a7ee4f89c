"""Rank metrics against trec_eval, the reference program for ranking measures: equal to four digits.

    pip install pytrec-eval-terrier      # trec_eval for Python, needed by this benchmark only
    python tests/benchmarks/judge.py FILE [--events 10000] [--repeats]

Evaluates the baseline `isgd` on a recorded file, as `afresh evaluate` does. The ten best items of each test
are also sorted out of all scores by numpy and handed to trec_eval with the target. Scores hardly ever tie, so
expected gains over equal scores are plain gains; tests with a tied target are left out on both sides, and
counted. Last line: JSON; exit code 1 where metrics differ by 0.00005 or more.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytrec_eval
from bench import parser_of, print_head, print_result, print_row
from recorded import NOW_MS
from recordings import read_recording

from pipeline.evaluation.rank_metrics import gains_of
from pipeline.models.baselines.isgd import IsgdModel
from pipeline.models.model import Targets, TrainingCandidates, TrainResult
from pipeline.recommender import Recommender
from pipeline.service.clock import SystemClock
from pipeline.service.prequential import Evaluation, Variant
from pipeline.settings import ModelConfig, RankConfig, Settings
from pipeline.state.queries import Queries
from pipeline.state.tables import LIVE
from pipeline.thread_limits import limit_threads

MEASURES = {"hr@10": "success_10", "ndcg@10": "ndcg_cut_10", "mrr@10": "recip_rank"}
SLACK = 0.00005


class Recorder:
    """Stands in front of a model's `learn`, and records what trec_eval needs of every test."""

    def __init__(self, recommender: Recommender, model: IsgdModel) -> None:
        self.run: dict[str, dict[str, float]] = {}  # test -> item -> score, of the ten best
        self.targets: dict[str, dict[str, int]] = {}  # test -> its target
        self.gains: list[Sequence[float]] = []  # the product's gains of each
        self.ties = 0
        self._state, self._model, self._learn = recommender.state, model, model.learn
        model.learn = self.learn  # type: ignore[method-assign]

    def learn(self, queries: Queries, training: TrainingCandidates, targets: Targets) -> TrainResult:
        """Record the scores from before the update, then let the model learn."""
        scores_BM = self._model.vectors(queries.user_B) @ self._model.items.data.T
        scores_BM[:, self._state.items.status.data != LIVE] = -np.inf
        result = self._learn(queries, training, targets)
        gains = np.stack(gains_of(result.ranks), axis=1)
        for b in np.flatnonzero(targets.tested_B).tolist():
            target, scores = int(targets.item_B[b]), scores_BM[b]
            excluded = queries.excluded[queries.excluded_indptr[b] : queries.excluded_indptr[b + 1]]
            scores[excluded[excluded >= 0]] = -np.inf
            if target >= 0 and np.count_nonzero(scores == scores[target]) > 1:
                self.ties += 1
                continue
            best = np.argsort(-scores)[:10]
            best = best[np.isfinite(scores[best])]
            test = str(len(self.targets))
            self.run[test] = {str(row): float(scores[row]) for row in best.tolist()}
            self.targets[test] = {str(target) if target >= 0 else "unknown": 1}
            self.gains.append(gains[b].tolist())
        return result


def metrics_of_trec(run: dict[str, dict[str, float]], targets: dict[str, dict[str, int]]) -> dict[str, float]:
    """Return the metrics of trec_eval. It leaves out tests without a list: these count as misses here."""
    evaluator = pytrec_eval.RelevanceEvaluator(targets, {"success", "ndcg_cut", "recip_rank"})
    found = evaluator.evaluate({test: items for test, items in run.items() if items})
    return {
        name: sum(metrics[measure] for metrics in found.values()) / len(targets)
        for name, measure in MEASURES.items()
    }


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", action="store_true")
    options = parser.parse_args()
    limit_threads(1)
    rank = RankConfig(exclude_event_types=[] if options.repeats else None)
    settings = msgspec.structs.replace(Settings(model=ModelConfig(name="isgd")), rank=rank)
    evaluation = Evaluation(settings, [Variant("isgd", {}, "isgd")], SystemClock())
    model: Any = evaluation.recommender.models[0]
    recorded = Recorder(evaluation.recommender, model.timed)
    evaluation.learn(read_recording(options.file, options.batch, now_ms=NOW_MS, limit=options.events), NOW_MS)
    whole: Any = evaluation.recommender.quality.cumulative()["isgd"]
    theirs = metrics_of_trec(recorded.run, recorded.targets)
    ours = dict(zip(MEASURES, np.mean(recorded.gains, axis=0).tolist(), strict=True))
    print_head("measure", "afresh", "trec_eval", "afresh, tied tests included")
    for name in MEASURES:
        print_row(name, *(f"{metrics[name]:.6f}" for metrics in (ours, theirs, whole)))
    differ = [name for name in MEASURES if abs(ours[name] - theirs[name]) >= SLACK]
    print_result(
        tests=len(recorded.targets), ties=recorded.ties, afresh=ours, trec_eval=theirs, differ=differ
    )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
