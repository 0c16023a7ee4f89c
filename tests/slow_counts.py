"""The oracle of the count features: sums straight from a log of all events, by id."""

import math
from collections import defaultdict
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.features import context_matches, recent_transitions, sessions, transitions
from pipeline.features.lessons import Lessons
from pipeline.features.popularity import DAY, HALF_LIVES, P300, P1000, POSITION, SMALL
from pipeline.recommender import Recommender
from pipeline.state.positions import DAY_MS

HISTORY = 25
Life = tuple[str, int]  # an id, and which of its admissions
Places = dict[Life, list[float]]  # what each place of a history adds to the sum of an item


class Taught(NamedTuple):
    """One positive event of the log."""

    item: Life
    weight: float
    window: list[Life]
    position: int
    session: int
    time_ms: int


class SlowCounts:
    """A log of everything learned; an item that was evicted and comes back is another one."""

    def __init__(self, recommender: Recommender) -> None:
        self.log: list[Taught] = []
        self.lives: dict[str, int] = defaultdict(int)
        self.held: set[str] = set()
        self.follow(recommender)

    def follow(self, recommender: Recommender) -> None:
        """Log what this recommender's bank is taught from now on."""
        self.state, self.bank, update = recommender.state, recommender.bank, recommender.bank.update

        def logged(lessons: Lessons) -> None:
            self._add(lessons)
            update(lessons)

        recommender.bank.update = logged  # type: ignore[method-assign]

    def life(self, row: int) -> Life:
        return (self.state.items.id_of[row], self.lives[self.state.items.id_of[row]])

    def row(self, life: Life) -> int:
        return self.state.items.row_of[life[0]]

    def _add(self, lessons: Lessons) -> None:
        for b in np.flatnonzero((lessons.item_B >= 0) & (lessons.weight_B > 0)).tolist():
            window = [self.life(row) for row in lessons.items_BL[b, : lessons.length_B[b]].tolist()]
            item, weight = self.life(int(lessons.item_B[b])), float(lessons.weight_B[b])
            at = int(lessons.position_B[b]), int(lessons.session_B[b]), int(lessons.time_ms_B[b])
            self.log.append(Taught(item, weight, window, *at))

    def end_step(self) -> None:
        """Note which items were evicted with a batch."""
        held = set(self.state.items.row_of)
        for text in self.held - held:
            self.lives[text] += 1
        self.held = held

    def alive(self, life: Life) -> bool:
        return life[0] in self.state.items.row_of and self.lives[life[0]] == life[1]

    @cache  # noqa: B019
    def popularity(self, column: int) -> dict[Life, float]:
        """Return what an item's events weigh by now, once all is learned."""
        out: dict[Life, float] = defaultdict(float)
        days, clock, at = 0.0, None, []
        for each in self.log:
            if clock is not None and each.time_ms > clock:
                days += min((each.time_ms - clock) / DAY_MS, 60.0)
            clock = max(clock or 0, each.time_ms)
            at.append(days)
        for i, each in enumerate(self.log):
            if column < POSITION or each.position == column - POSITION:
                age = days - at[i] if column == DAY else (len(self.log) - i) / HALF_LIVES[column]
                out[each.item] += each.weight * 0.5**age
        return {life: value for life, value in out.items() if self.alive(life)}

    @cache  # noqa: B019
    def pairs(self) -> dict[str, Any]:
        """Return forward, backward and recent weights, counts, followed weights and occurrences."""
        forward, backward, recent = (defaultdict(lambda: defaultdict(float)) for _ in range(3))
        count, followed, occurrences = defaultdict(float), defaultdict(float), defaultdict(list)
        for age, each in zip(range(len(self.log), 0, -1), self.log, strict=True):
            count[each.item] += each.weight
            for k, h in enumerate(each.window[: transitions.REACH]):
                w = each.weight * transitions.FADE**k
                forward[h][each.item] += w
                backward[each.item][h] += w
                followed[h] += w
            for h in each.window[:1]:
                recent[h][each.item] += each.weight * 0.5 ** (age / recent_transitions.HALF_LIFE)
                occurrences[h].append((each.item, each.window[1 : 1 + context_matches.BEFORE]))
        out = {"forward": forward, "backward": backward, "recent": recent, "count": count}
        return out | {"followed": followed, "occurrences": occurrences}

    @cache  # noqa: B019
    def sessions(self) -> tuple[dict[int, list[Life]], dict[Life, list[int]]]:
        """Return each session's items, and each item's sessions, both in order."""
        items: dict[int, list[Life]] = defaultdict(list)
        visits: dict[Life, list[int]] = defaultdict(list)
        for each in self.log:
            if each.item not in items[each.session]:
                visits[each.item].append(each.session)
            items[each.session].append(each.item)
        return items, visits


class Sums(NamedTuple):
    """What a history and the log say of each item, by feature; `weights`: of all occurrences."""

    of: dict[str, Places]
    weights: float


def slow_sums(slow: SlowCounts, history: list[Life], own_session: int, repeats: bool) -> Sums:
    """Return the sums over a history, newest first, straight from the docstrings."""
    pairs, shares = slow.pairs(), slow.popularity(P1000)
    sums: dict[str, Places] = defaultdict(lambda: defaultdict(lambda: [0.0] * HISTORY))
    for k, h in enumerate(history[: transitions.REACHED]):
        for m in {**pairs["forward"][h], **pairs["backward"][h]}:
            forward, both = pairs["forward"][h][m], pairs["forward"][h][m] + pairs["backward"][h][m]
            norm = math.sqrt(1 + pairs["count"][h]) * (1 + pairs["count"][m])
            sums["lift"][m][k] += 0.9**k * both / norm
            if k < transitions.PARENTS:
                sums["back_off"][m][k] += 0.6**k * forward
                sums["each"][m][k] += 0.8**k * math.log(1 + both / (2 * prior(slow, shares, m, 20)))
    weights = 0.0
    for h in history[:1]:
        for m, value in pairs["recent"][h].items():
            sums["recent_back_off"][m][0] += value
        for m, before in pairs["occurrences"][h][-context_matches.OCCURRENCES :]:
            match = 1.0
            for q, p in enumerate(before, 1):
                if slow.alive(p) and q < len(history) and history[q] == p:
                    match += 1
                elif slow.alive(p) and p in history[1 : context_matches.CLOSE]:
                    match += 0.5
            weights += match**2
            sums["matched"][m][0] += match**2
            sums["sharp"][m][0] += match**4
    items, visits = slow.sessions()
    for key, whole in items.items():
        words = {
            k: sessions.FADE**k / math.sqrt(1 + len(visits[h]))
            for k, h in enumerate(history[: sessions.REACH])
            if h not in history[:k] and key in visits[h][-sessions.VISITS :]
        }
        if words and key != own_session:
            for m in whole[-sessions.PLACES :]:
                for k, word in words.items() if m != history[min(words)] else ():
                    part = sum(words.values()) * word / math.sqrt(1 + min(len(whole), sessions.PLACES))
                    sums["session"][m][k] += part
    for k, m in enumerate(history if repeats else ()):
        if m not in history[:k]:
            sums["last"][m][k] = 1 / (1 + k)
            sums["often"][m][k] = history.count(m)
        if k + 1 < len(history):
            two = k + 2 < len(history) and history[k + 2] == history[1]
            like = (3.0 if two else 1.0) if history[k + 1] == history[0] else 0.0
            passed = 0.3 if history[k + 1] == history[1] else 0.0
            sums["again"][m][k + 1] += like or passed
    return Sums(sums, weights)


def prior(slow: SlowCounts, values: dict[Life, float], m: Life, weight: float) -> float:
    return (values.get(m, 0) + SMALL) / (sum(values.values()) + SMALL * len(slow.state.items)) * weight


def slow_features(slow: SlowCounts, sums: Sums, m: Life, position: int) -> dict[str, float]:
    total = {name: sum(places[m]) if m in places else 0.0 for name, places in sums.of.items()}
    total = defaultdict(float, total)
    columns = {"long": P1000, "recent": P300, "day": DAY, "position": POSITION + position}
    values = {name: slow.popularity(column) for name, column in columns.items()}
    return {
        "back_off": math.log(1 + total["back_off"] / prior(slow, values["long"], m, 20)) / 3,
        "each": total["each"] / 3,
        "lift": math.log(1 + 300 * total["lift"]) / 3,
        "recent_back_off": math.log(1 + total["recent_back_off"] / prior(slow, values["recent"], m, 10)) / 3,
        "matched": math.log(1 + 1000 * total["matched"] / (sums.weights or 1)) / 3,
        "sharp": math.log(1 + total["sharp"]) / 3,
        "last": (4 + math.log(total["last"])) / 3 if total["last"] else 0.0,
        "often": math.log(1 + total["often"]),
        "again": math.log(1 + total["again"]),
        "session": math.log(1 + 300 * total["session"]) / 3,
        **{name: math.log(of.get(m, 0) + SMALL) / 3 for name, of in values.items()},
    }
