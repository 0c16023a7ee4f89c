"""Everything that is measured of a stream: rank metrics, exposure, metrics over time, drift and the reaction.

Axis: B = events of a batch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.drift import DriftWatch, scaled_loss
from pipeline.evaluation.exposure import Exposure
from pipeline.evaluation.rank_metrics import RankMetrics, gains_of
from pipeline.evaluation.reaction import Reaction, Response
from pipeline.evaluation.timeline import Moment, Timeline, Track
from pipeline.events.batch import Batch
from pipeline.models.model import RankResult

Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]


class Measure(Protocol):
    """What a checkpoint keeps of a measure."""

    def arrays(self) -> Arrays: ...
    def load(self, arrays: Arrays) -> None: ...


class Evaluator:
    """Evaluate all models on each batch. A store: checkpoints use `arrays` and `load`."""

    def __init__(self, models: Sequence[str], react: bool) -> None:
        """`models[0]` is served; its drift is reacted to if `react`."""
        self.quality = RankMetrics(models)
        self.exposure = Exposure()
        self.timeline = Timeline(models)
        self.drift = DriftWatch()
        self.reaction = Reaction(react)

    def update(
        self,
        batch: Batch,
        results: Mapping[str, RankResult],
        cold_B: Bools,
        new_B: npt.NDArray[np.float64],
        list_hit_N: Bools,
    ) -> Response:
        """Add a batch's results by model, the served one's among them; return drift alarms and the response.

        `list_hit_N`: hits among the events of users with a published list. The rest as in `RankMetrics`.
        """
        for model, result in results.items():
            self.quality.update(model, result, cold_B, new_B)
        self.quality.update_list_hits(list_hit_N)
        served = results[self.quality.models[0]]
        hit_B, loss_B = gains_of(served).hit_B, scaled_loss(served)
        alarms = self.drift.update(hit_B, loss_B, new_B, batch.first_event, batch.now_ms)
        response = self.reaction.respond(alarms, batch.first_event + len(batch.user_B))
        self.timeline.update(int(batch.moment_ms_B.max(initial=0)), response.alarms)
        return response

    def record_moment(self, events: int, live_rows: npt.NDArray[np.integer]) -> None:
        """Add the present to the timeline. `live_rows`: the rows of the known items."""
        self.timeline.add(self._now(events, live_rows))

    def track(self, events: int, live_rows: npt.NDArray[np.integer]) -> Track:
        """Return the metrics over time, up to now."""
        return self.timeline.track(self._now(events, live_rows))

    def arrays(self) -> Arrays:
        return {
            f"{measure}/{name}": array
            for measure, part in self._measures().items()
            for name, array in part.arrays().items()
        }

    def load(self, arrays: Mapping[str, Any], restarted: Collection[str], other_served: bool) -> None:
        """Restore the state from `arrays`, but that of models in `restarted`.

        `other_served`: another model was served, so drift, the reaction and recent list hits are dropped.
        """
        stale = [f"/model.{name}." for name in restarted]
        for measure, part in self._measures().items():
            if other_served and measure in ("drift", "reaction"):
                continue
            prefix = f"{measure}/"
            part.load({
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
                and not any(mark in name for mark in stale)
                and not (other_served and name == "quality/list_hits.recent")
            })  # fmt: skip

    def _measures(self) -> dict[str, Measure]:
        return {
            "quality": self.quality, "exposure": self.exposure, "timeline": self.timeline,
            "drift": self.drift, "reaction": self.reaction,
        }  # fmt: skip

    def _now(self, events: int, live_rows: npt.NDArray[np.integer]) -> Moment:
        coverage = self.exposure.coverage(live_rows)
        return Moment(events, self.timeline.newest_ms, self.quality.totals(), coverage, len(live_rows))
