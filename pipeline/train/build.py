"""The models of a recommender by name: the served one first, then the live baselines."""

from pipeline.settings import Settings
from pipeline.state.state import State
from pipeline.train.baselines import ItemKnnModel, PopularityModel
from pipeline.train.model import Model
from pipeline.train.streaming_attention import StreamingAttention

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
