"""The models of a recommender by name: the served one first, then the live baselines."""

import logging
from collections.abc import Mapping, Sequence

from pipeline.settings import Settings
from pipeline.state.state import State
from pipeline.state.tables import IdTable
from pipeline.train.baselines import ItemKnnModel, PopularityModel
from pipeline.train.model import Model
from pipeline.train.streaming_attention import StreamingAttention

logger = logging.getLogger(__name__)

LIVE_LINES = ("popularity", "recent_popularity")


def build_model(name: str, state: State, settings: Settings) -> Model:
    """Return the model of that name in its default setting. Raises ValueError for a name that is none."""
    if name == "attention":
        return StreamingAttention(
            state.items, state.histories, state.popularity, state.successors, settings.model.dim,
            state.histories.length, settings.model.seed, settings.model.memories != "none",
        )  # fmt: skip
    if name == "popularity":
        return PopularityModel(state.popularity, state.items, "all", name)
    if name == "recent_popularity":
        return PopularityModel(state.popularity, state.items, "1000", name)
    if name == "item_knn":
        return ItemKnnModel(state.successors, state.items)
    raise ValueError(f"model {name!r}: expected attention, popularity, recent_popularity or item_knn")


def build_models(state: State, settings: Settings) -> list[Model]:
    """Return the served model and the popularity lines that it is compared with."""
    served = settings.model.name
    return [
        build_model(name, state, settings)
        for name in (served, *(line for line in LIVE_LINES if line != served))
    ]


def start_anew(models: Sequence[Model], restarted: Mapping[str, str], items: IdTable) -> None:
    """Show the items that are known to models whose parameters a checkpoint does not give.

    `restarted` names them, each with what forbids to go on; "": the settings do, and that is told already.
    """
    ids = list(items.row_of)
    for model in models:
        if model.name in restarted:
            model.welcome(items.rows(ids), ids)
            if why := restarted[model.name]:
                logger.warning("model %s starts anew and learns from the next event on: %s", model.name, why)
