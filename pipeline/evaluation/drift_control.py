"""Everything about drift that a recommender keeps: the watch, the ages of items, and the reaction.

Axis: B = events of a batch, M = item rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.drift import YOUNG, DriftWatch, scaled_loss
from pipeline.evaluation.reaction import Reaction
from pipeline.events.batch import Batch
from pipeline.events.records import DriftAlarm
from pipeline.features.bank import FeatureBank
from pipeline.models.model import RankResult
from pipeline.state.item_age import ItemAge
from pipeline.state.state import State

Arrays = dict[str, npt.NDArray[np.generic]]
_REACTION = "reaction."


class DriftControl:
    """Tells of changes and answers them. A store: checkpoints use `arrays` and `load`.

    What an alarm brings about is there from the next batch on: this batch is tested and learned already.
    """

    def __init__(self, state: State, bank: FeatureBank, reaction: bool) -> None:
        """Watch the items of a state; answer alarms if `reaction`."""
        self._state, self._bank = state, bank
        self._watch, self._reaction = DriftWatch(), Reaction(reaction)
        self._births = ItemAge(state.items.capacity)
        state.register("item_age", self._births)

    @property
    def reacting(self) -> bool:
        """Whether a reaction runs at the next event."""
        return self._reaction.running(self._state.events_learned)

    def step_scale(self, first_event: int) -> float:
        """Return how much longer than usual the steps of a batch are that begins with this event."""
        return self._reaction.pace(first_event)

    def init_rows(self, rows: Any) -> None:
        """Take note of items just admitted."""
        self._births.note(rows, self._state.events_learned)

    def young(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Say of each event [B] whether its item is new, known for fewer than YOUNG events: 1 or 0."""
        return self._births.young(batch.item_B, batch.first_event, YOUNG)

    def update(self, batch: Batch, hit_B: npt.NDArray[np.float64], tested: RankResult) -> list[DriftAlarm]:
        """Look at a batch that the served model has learned; answer the alarms and return them.

        `hit_B` is each event's expected hit, NaN where it was no test.
        """
        young_B = self.young(batch)
        alarms = self._watch.update(hit_B, scaled_loss(tested), young_B, batch.first_event, batch.now_ms)
        return self.answer(alarms)

    def answer(self, alarms: Sequence[DriftAlarm]) -> list[DriftAlarm]:
        """React to alarms of the events learned so far; return them, each with the strength of its answer."""
        return self._reaction.answer(alarms, self._bank, self._state.events_learned)

    def arrays(self) -> Arrays:
        """Return what the watch and the reaction keep; the ages of items are columns of the state."""
        reaction = {f"{_REACTION}{name}": array for name, array in self._reaction.arrays().items()}
        return self._watch.arrays() | reaction

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from; what isn't in it starts afresh."""
        self._watch.load(arrays)
        self._reaction.load(
            {name.removeprefix(_REACTION): a for name, a in arrays.items() if name.startswith(_REACTION)}
        )
