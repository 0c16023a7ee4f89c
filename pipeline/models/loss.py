"""Softmax cross entropy, softened where nothing could be foreseen: over a query's candidates, and the rest of
the catalogue by a uniform sample.

    -ln p_b = -logit_b(target) + ln( sum over candidates and target of e^logit
                                     + R_b / n_b * sum over sampled others of e^logit )

    objective_b = FLOOR * -ln p_b + (1 - FLOOR) * -ln(p_b + UNFORESEEN)

Many events can't be foreseen: their item stands far below any list's end whatever is learned from it. Plain
cross entropy spends most of its gradient on them; the second term takes p_b for one of two explanations, the
other being an item out of the blue (of probability UNFORESEEN), so that an event teaches in proportion to how
likely it was foreseen. The first term lets even a model that foresees nothing learn.

The candidates carry most of the mass and are summed exactly; R_b counts the items that are neither candidate,
target nor barred, and n_b how many of them were drawn, so the sum is unbiased (log-Q correction of a uniform
draw). With every other item drawn it is the full softmax.

    logit_b(m) = u_b . e_m + sum over dense features D_mf c_bf + sum over sparse features X_bmf c_bf

Axes: B = queries, C = candidate slots, N = sampled rows, D = embedding, F = features (dense, then sparse).
"""

import numpy as np

from pipeline.features.memories import D_CELL, DENSE, SPARSE
from pipeline.kernels import kernel
from pipeline.state.tables import LIVE

# measured on recorded streams: a background of .0003 to .003 does as well; without the floor .2 % less
UNFORESEEN, FLOOR = np.float32(1e-3), np.float32(0.1)
_FAST = {
    "reassoc",
    "contract",
    "nsz",
    "arcp",
}  # lets dot products use vector registers; the order stays fixed


@kernel(fastmath=_FAST)
def dot(a, b, n):  # type: ignore[no-untyped-def]
    """Return the inner product of the first n entries."""
    total = np.float32(0)
    for i in range(n):
        total += a[i] * b[i]
    return total


@kernel(fastmath=_FAST)
def dense_part(table_row, dim, cell, coef):  # type: ignore[no-untyped-def]
    """Return the dense features' part of a logit; of the cell columns only the query's own counts."""
    total = np.float32(0)
    for f in range(D_CELL):
        total += table_row[dim + f] * coef[f]
    return total + table_row[dim + D_CELL + cell] * coef[D_CELL]


@kernel()
def pool_logits(user_BD, table, dim, cell_B, coef_BF, rows_BC, count_B, X_BCS, out_BC):  # type: ignore[no-untyped-def]
    """Write every candidate's logit to `out_BC`."""
    for b in range(rows_BC.shape[0]):
        for c in range(count_B[b]):
            row = table[rows_BC[b, c]]
            logit = dot(user_BD[b], row, dim) + dense_part(row, dim, cell_B[b], coef_BF[b])
            for f in range(SPARSE):
                logit += X_BCS[b, c, f] * coef_BF[b, DENSE + f]
            out_BC[b, c] = logit


@kernel()
def softmax_loss(  # type: ignore[no-untyped-def]
    user_BD, table, dim, cell_B, coef_BF, rows_BC, count_B, X_BCS, logit_BC, target_B, weight_B, barred,
    border_B, known, status_M, negative_N, logit_BN, tag, stamp, unforeseen, floor, loss_B, slope_BC, slope_B,
    slope_BN, coef_grad_BF,
):  # fmt: skip
    """Write losses -ln p and slopes d objective / d logit; return nothing.

    `slope_B` is the target's own slope where it is no candidate (else 0). `known` counts the LIVE rows;
    `stamp` is scratch [M] int64 and `tag` a number larger than any in it.
    """
    for b in range(rows_BC.shape[0]):
        loss_B[b], slope_B[b] = 0, 0
        slope_BC[b, :], slope_BN[b, :], coef_grad_BF[b, :] = 0, 0, 0
        t = target_B[b]
        if t < 0:
            continue
        mark = tag + b
        rest = known
        for e in range(border_B[b], border_B[b + 1]):
            # only what `known` counts is taken off it: a barred item may be new, or gone and not yet scrubbed
            if barred[e] >= 0 and status_M[barred[e]] == LIVE and stamp[barred[e]] != mark:
                stamp[barred[e]] = mark
                rest -= 1
        at = -1
        top = np.float32(-np.inf)
        for c in range(count_B[b]):
            m = rows_BC[b, c]
            stamp[m] = mark
            rest -= 1
            if m == t:
                at = c
            top = max(top, logit_BC[b, c])
        own = np.float32(0)
        if at < 0:
            row = table[t]
            own = dot(user_BD[b], row, dim) + dense_part(row, dim, cell_B[b], coef_BF[b])
            stamp[t] = mark
            rest -= 1
            top = max(top, own)
        drawn = 0
        for n in range(negative_N.shape[0]):
            if stamp[negative_N[n]] != mark:
                drawn += 1
                top = max(top, logit_BN[b, n])
        lift = np.float32(max(rest, 1) / drawn) if drawn > 0 else np.float32(0)
        total = np.float32(0)
        for c in range(count_B[b]):
            slope_BC[b, c] = np.exp(logit_BC[b, c] - top)
            total += slope_BC[b, c]
        if at < 0:
            slope_B[b] = np.exp(own - top)
            total += slope_B[b]
        for n in range(negative_N.shape[0]):
            if stamp[negative_N[n]] != mark:
                slope_BN[b, n] = lift * np.exp(logit_BN[b, n] - top)
                total += slope_BN[b, n]
        loss_B[b] = np.log(total) + top - (own if at < 0 else logit_BC[b, at])
        p = np.exp(-loss_B[b])
        weight = weight_B[b] * (floor + (np.float32(1) - floor) * p / (p + unforeseen))
        w = weight / total
        for c in range(count_B[b]):
            slope_BC[b, c] *= w
        for n in range(negative_N.shape[0]):
            slope_BN[b, n] *= w
        if at < 0:
            slope_B[b] = slope_B[b] * w - weight
        else:
            slope_BC[b, at] -= weight
        _coefficient_gradient(
            b,
            table,
            dim,
            cell_B,
            rows_BC,
            count_B,
            X_BCS,
            t,
            at,
            negative_N,
            slope_BC,
            slope_B,
            slope_BN,
            coef_grad_BF,
        )


@kernel(fastmath=_FAST)
def _coefficient_gradient(  # type: ignore[no-untyped-def]
    b, table, dim, cell_B, rows_BC, count_B, X_BCS, t, at, negative_N, slope_BC, slope_B, slope_BN, grad_BF
):
    cell = dim + D_CELL + cell_B[b]
    for c in range(count_B[b]):
        slope = slope_BC[b, c]
        row = table[rows_BC[b, c]]
        for f in range(D_CELL):
            grad_BF[b, f] += slope * row[dim + f]
        grad_BF[b, D_CELL] += slope * row[cell]
        for f in range(SPARSE):
            grad_BF[b, DENSE + f] += slope * X_BCS[b, c, f]
    if at < 0:
        row = table[t]
        for f in range(D_CELL):
            grad_BF[b, f] += slope_B[b] * row[dim + f]
        grad_BF[b, D_CELL] += slope_B[b] * row[cell]
    for n in range(negative_N.shape[0]):
        slope = slope_BN[b, n]
        if slope != 0:
            row = table[negative_N[n]]
            for f in range(D_CELL):
                grad_BF[b, f] += slope * row[dim + f]
            grad_BF[b, D_CELL] += slope * row[cell]


@kernel()
def exact_rank(  # type: ignore[no-untyped-def]
    logit_BM, coef_BF, rows_BC, count_B, X_BCS, target_B, barred, border_B, unseen_N, greater_B, equal_B,
    candidates_B,
):  # fmt: skip
    """Count, over all rows but those of `unseen_N` and the barred ones, those above and those level with the
    target (itself left out).

    `logit_BM` holds embedding and dense part; the sparse part is added here, and entries that don't count are
    overwritten. `candidates_B` counts the rows compared, the target included. A target below 0 counts
    nothing; one whose score is no finite number stands below all.
    """
    low = np.float32(-np.inf)
    for b in range(logit_BM.shape[0]):
        t = target_B[b]
        greater_B[b], equal_B[b], candidates_B[b] = 0, 0, 0
        if t < 0:
            continue
        scores = logit_BM[b]
        for c in range(count_B[b]):
            m = rows_BC[b, c]
            for f in range(SPARSE):
                scores[m] += X_BCS[b, c, f] * coef_BF[b, DENSE + f]
        own = scores[t]
        for m in unseen_N:
            scores[m] = low
        seen = scores.shape[0] - unseen_N.shape[0]
        for e in range(border_B[b], border_B[b + 1]):
            if barred[e] >= 0 and scores[barred[e]] != low:
                scores[barred[e]] = low
                seen -= 1
        if np.isfinite(own):
            greater_B[b], level = _above(scores, own)
            equal_B[b] = level - 1
        else:
            greater_B[b] = seen
        candidates_B[b] = seen


@kernel()
def _above(scores, own):  # type: ignore[no-untyped-def]
    """Count the scores above `own` and those equal to it: loops that become vector instructions."""
    none, one = np.int32(0), np.int32(1)
    above = least = 0
    for start in range(0, scores.shape[0], 4096):  # as much as stays in the nearest cache for two looks
        some = scores[start : start + 4096]
        more, as_much = none, none
        for m in range(some.shape[0]):
            more = np.int32(more + (one if some[m] > own else none))
        for m in range(some.shape[0]):
            as_much = np.int32(as_much + (one if some[m] >= own else none))
        above += int(more)
        least += int(as_much)
    return above, least - above
