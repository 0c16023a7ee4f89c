"""Softmax cross entropy in a robust form: over a query's candidates, and all other items by a uniform draw.

    -ln p_b = -logit_b(target) + ln( sum over candidates and target of e^logit
                                     + R_b / n_b * sum over drawn others of e^logit )

    objective_b = FLOOR * -ln p_b + (1 - FLOOR) * -ln(p_b + BACKGROUND)

Plain cross entropy spends most of its gradient on events that can't be foreseen. The second term is that of a
mixture with a uniform background probability: an event teaches in proportion to how likely it was foreseen.
The first lets even a model that foresees nothing learn. R_b counts the items that are neither candidate,
target nor excluded, and n_b how many of them were drawn, so the sum is unbiased (log-Q correction of a
uniform draw). Axes as in model.py.
"""

from typing import NamedTuple

import numpy as np

from pipeline.kernels import kernel
from pipeline.models.model import FloatArray, TrainingCandidates

# measured on recorded streams: a background of .0003 to .003 does as well; without the floor .2 % less
BACKGROUND, FLOOR = np.float32(1e-3), np.float32(0.1)


class Logits(NamedTuple):
    """Logits of a batch: of candidates, of targets that are none of them, of negatives."""

    candidates_N: FloatArray
    target_B: FloatArray
    negatives_BS: FloatArray


class Loss(NamedTuple):
    """Losses -ln p [B], the objective's slopes with respect to `Logits`, and the estimated share of all other
    items below the target [B], ties counted half. 0 and NaN where an event has no target.
    """

    loss_B: FloatArray
    slopes: Logits
    below_B: FloatArray


def softmax_loss(
    logits: Logits,
    training: TrainingCandidates,
    weight_B: FloatArray,
    background: np.float32 = BACKGROUND,
    floor: np.float32 = FLOOR,
) -> Loss:
    """Return losses and slopes; `weight_B` scales each event's slopes."""
    slopes = Logits(*(np.zeros_like(part) for part in logits))
    loss_B = np.zeros_like(logits.target_B)
    below_B = np.full_like(logits.target_B, np.nan)
    counts = (training.used_BS, training.stands_for_B, training.shown_B)
    _softmax_loss(
        logits, training.candidates.indptr, training.place_B, counts, weight_B, (background, floor), slopes,
        loss_B, below_B,
    )  # fmt: skip
    return Loss(loss_B, slopes, below_B)


@kernel()
def _softmax_loss(logits, indptr, place_B, counts, weight_B, form, slopes, loss_B, below_B):  # type: ignore[no-untyped-def]
    used_BS, stands_for_B, shown_B = counts
    background, floor = form
    logit_N, own_B, logit_BS = logits
    slope_N, slope_B, slope_BS = slopes
    for b in range(place_B.shape[0]):
        at = place_B[b]
        if at < -1:
            continue
        own = logit_N[at] if at >= 0 else own_B[b]
        top = own
        above, drawn, below = np.float32(0), 0, np.float32(0)  # `above` among the candidates
        for n in range(indptr[b], indptr[b + 1]):
            top = max(top, logit_N[n])
            above += np.float32(logit_N[n] > own) + np.float32(0.5) * np.float32(logit_N[n] == own)
        for s in range(used_BS.shape[1]):
            if used_BS[b, s]:
                drawn += 1
                top = max(top, logit_BS[b, s])
                below += np.float32(logit_BS[b, s] < own) + np.float32(0.5) * np.float32(
                    logit_BS[b, s] == own
                )
        total = np.float32(0)
        for n in range(indptr[b], indptr[b + 1]):
            slope_N[n] = np.exp(logit_N[n] - top)
            total += slope_N[n]
        if at < 0:
            slope_B[b] = np.exp(own - top)
            total += slope_B[b]
        for s in range(used_BS.shape[1]):
            if used_BS[b, s]:
                slope_BS[b, s] = stands_for_B[b] * np.exp(logit_BS[b, s] - top)
                total += slope_BS[b, s]
        listed = indptr[b + 1] - indptr[b]
        if at >= 0:
            above, listed = above - np.float32(0.5), listed - 1  # the target itself
        others = shown_B[b] - 1
        if drawn > 0:
            above += (others - listed) * (np.float32(1) - below / np.float32(drawn))
        if others > 0:
            below_B[b] = np.float32(1) - above / np.float32(others)
        loss_B[b] = np.log(total) + top - own
        p = np.exp(-loss_B[b])
        weight = weight_B[b] * (floor + (np.float32(1) - floor) * p / (p + background))
        w = weight / total
        for n in range(indptr[b], indptr[b + 1]):
            slope_N[n] *= w
        for s in range(used_BS.shape[1]):
            slope_BS[b, s] *= w
        if at < 0:
            slope_B[b] = slope_B[b] * w - weight
        else:
            slope_N[at] -= weight
