"""The models of a recommender by name: the served one first, then the live baselines."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from pipeline.models.attention import StreamingAttention
from pipeline.models.baselines.biased_mf import BiasedMfModel
from pipeline.models.baselines.counts import HALF_LIFE_COLUMNS, FadingModel, PopularityModel
from pipeline.models.baselines.isgd import IsgdModel
from pipeline.models.baselines.neighbours import BackOff, ItemKnnModel, PairsModel
from pipeline.models.baselines.session_knn import SessionKnnModel
from pipeline.models.model import Model
from pipeline.settings import Settings
from pipeline.state.pairs import Pairs
from pipeline.state.sessions import Sessions
from pipeline.state.state import State
from pipeline.state.tables import IdTable

logger = logging.getLogger(__name__)

LIVE_LINES = ("popularity", "recent_popularity")
KNN_REACH, KNN_FADE = 10, 0.5  # of pairs that item-kNN counts on its own
MINUTE_MS = 60_000
Value = str | int | float | bool


def build_model(
    name: str, state: State, settings: Settings, setting: Mapping[str, Value] | None = None, label: str = ""
) -> Model:
    """Return the model of that name, in its default setting but for what `setting` says, called `label`.

    Raises ValueError for a name that is none.
    """
    if name not in _BUILDERS:
        raise ValueError(f"model {name!r}: expected one of {', '.join(_BUILDERS)}")
    return _BUILDERS[name](state, settings, label or name, **(setting or {}))


def build_models(state: State, settings: Settings) -> list[Model]:
    """Return the served model and the popularity lines that it is compared with."""
    served = settings.model.name
    return [
        build_model(name, state, settings)
        for name in (served, *(line for line in LIVE_LINES if line != served))
    ]


def restart_models(models: Sequence[Model], restarted: Mapping[str, str], items: IdTable) -> None:
    """Show the items that are known to models whose parameters a checkpoint does not give.

    `restarted` names them, each with what forbids to go on; "": the settings do, and that is told already.
    """
    ids = list(items.row_of)
    for model in models:
        if model.name in restarted:
            model.welcome(items.rows(ids), ids)
            if why := restarted[model.name]:
                logger.warning("model %s starts anew and learns from the next event on: %s", model.name, why)


def _attention(state: State, settings: Settings, label: str) -> Model:
    return StreamingAttention(
        state.items, state.histories, state.counts, settings.model.dim,
        state.histories.length, settings.model.seed, settings.model.memories != "none",
    )  # fmt: skip


def _popularity(state: State, settings: Settings, label: str) -> Model:
    return PopularityModel(state.popularity, state.items, "all", label)


def _recent_popularity(state: State, settings: Settings, label: str, half_life: str = "1000") -> Model:
    if half_life in HALF_LIFE_COLUMNS:
        return PopularityModel(state.popularity, state.items, half_life, label)
    return FadingModel(state.popularity, state.items, float(half_life), label)


def _markov(
    state: State,
    settings: Settings,
    label: str,
    half_life: str = "10000",
    popularity: str = "1000",
    weight: float = 1,
) -> Model:
    pairs = Pairs(state.items.capacity, 1, 1.0, _events(half_life), both=False)
    return PairsModel(
        pairs, state.popularity, state.items, BackOff(popularity, weight), label, settings.model.seed
    )


def _item_knn(
    state: State,
    settings: Settings,
    label: str,
    directed: bool = True,
    half_life: str = "",
    popularity: str = "1000",
    weight: float = 1,
) -> Model:
    """Without a half-life: on the memories' own counts."""
    back_off = BackOff(popularity, weight)
    if not half_life:
        return ItemKnnModel(state.successors, state.popularity, state.items, directed, back_off, label)
    pairs = Pairs(state.items.capacity, KNN_REACH, KNN_FADE, _events(half_life), both=not directed)
    return PairsModel(pairs, state.popularity, state.items, back_off, label, settings.model.seed)


def _session_knn(
    state: State,
    settings: Settings,
    label: str,
    gap_minutes: int = 30,
    after: bool = False,
    popularity: str = "1000",
    weight: float = 1,
) -> Model:
    """A gap of 0: all of a user's events are one session."""
    gap_ms = gap_minutes * MINUTE_MS if gap_minutes else 2**62
    sessions = Sessions(state.items.capacity, state.users.capacity, gap_ms)
    back_off = BackOff(popularity, weight)
    return SessionKnnModel(sessions, state.popularity, state.items, after, back_off, label)


def _isgd(
    state: State, settings: Settings, label: str, dim: int = 16, rate: float = 0.1, negatives: int = 3
) -> Model:
    return IsgdModel(state.users, state.items, dim, rate, negatives, label, settings.model.seed)


def _biased_mf(
    state: State, settings: Settings, label: str, dim: int = 16, rate: float = 0.005, negatives: int = 1
) -> Model:
    return BiasedMfModel(state.users, state.items, dim, rate, negatives, label, settings.model.seed)


def _events(half_life: str) -> float:
    return math.inf if half_life == "all" else float(half_life)


_BUILDERS: dict[str, Callable[..., Model]] = {
    "attention": _attention,
    "popularity": _popularity,
    "recent_popularity": _recent_popularity,
    "markov": _markov,
    "item_knn": _item_knn,
    "session_knn": _session_knn,
    "isgd": _isgd,
    "biased_mf": _biased_mf,
}
