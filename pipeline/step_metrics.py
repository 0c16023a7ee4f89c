"""The metrics of one batch, from the state before and after it."""

import numpy as np

from pipeline.events.batch import Batch
from pipeline.models.model import TrainResult
from pipeline.outcome import StepMetrics, TableMetrics
from pipeline.ranking.recipients import Recipients
from pipeline.state.published_lists import LATER, NOW
from pipeline.state.state import State


def tables_of(state: State) -> dict[str, TableMetrics]:
    """Return each table's live rows, and how many were ever admitted and evicted."""
    users, items, availability = state.users, state.items, state.availability
    return {
        # row 0 is the user without events
        "users": TableMetrics(len(users) - 1, users.admitted, users.evicted),
        "items": TableMetrics(len(items), items.admitted, items.evicted),
        "withdrawn": TableMetrics(len(availability.withdrawn), availability.came, availability.went),
    }


def step_metrics_of(
    state: State,
    batch: Batch,
    served: TrainResult,
    before: dict[str, TableMetrics],
    to: Recipients,
    reacting: bool,
) -> StepMetrics:
    """Return the metrics of a batch; `served` is the result of the served model, `before` are the tables
    before then.
    """
    tables = {
        name: TableMetrics(now.live, now.admitted - was.admitted, now.evicted - was.evicted)
        for (name, was), now in zip(before.items(), tables_of(state).values(), strict=True)
    }
    return StepMetrics(
        types=batch.types,
        duplicates=batch.duplicates,
        learned=len(batch.user_B),
        loss=served.loss,
        gradient_norm=served.gradient_norm,
        skipped=served.skipped,
        newest_event_ms=int(batch.time_ms_B.max(initial=0)),
        tables=tables,
        late=int(np.count_nonzero(to.late_B)),
        moved=batch.moved,
        due=state.refresh.waiting(NOW) + state.refresh.waiting(LATER),
        reacting=reacting,
    )
