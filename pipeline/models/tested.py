"""What a model's test of one batch gives: where each target stood among its candidates before the update.

Axis: B = events of the batch, in learning order.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class RankResult(NamedTuple):
    """Scores of a batch's targets from before the update, as counts that no later stage can misread.

    Rows where `tested_B` is False hold nothing of meaning in the other columns.
    """

    greater_B: npt.NDArray[np.int64]  # candidates that score above the target
    equal_B: npt.NDArray[np.int64]  # other candidates that score the same as the target
    candidates_B: npt.NDArray[np.int64]  # the target and all that it was ranked among
    tested_B: npt.NDArray[
        np.bool_
    ]  # the event is a test: a positive role, its item not excluded for this user
    known_B: npt.NDArray[
        np.bool_
    ]  # the item had a row when the batch began; a test of an unknown one is a miss
    loss_B: npt.NDArray[np.float32] | None = None  # nats, NaN where none; None where the model has no loss


RankResult.__test__ = False  # type: ignore[attr-defined]  # pytest collects whatever is called Test...
