"""The models by name. To add one: its file, and a line in `MODELS`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pipeline.features.popularity import LISTS_SHOWN
from pipeline.features.transitions import REACH
from pipeline.models.attention import AttentionConfig, AttentionModel
from pipeline.models.baselines.biased_mf import BiasedMfConfig, BiasedMfModel
from pipeline.models.baselines.factors import FactorConfig
from pipeline.models.baselines.isgd import IsgdModel
from pipeline.models.baselines.neighbours import ItemKnnConfig, MarkovConfig, item_knn, markov
from pipeline.models.baselines.popularity import (
    HALF_LIFE_COLUMNS,
    PopularityConfig,
    RecentPopularityConfig,
    popularity_model,
)
from pipeline.models.baselines.session_knn import SessionKnnConfig, SessionKnnModel
from pipeline.models.model import Model, ModelContext
from pipeline.models.ncf import NcfConfig, NcfModel
from pipeline.models.sasrec import SasRecConfig, SasRecModel
from pipeline.settings import ModelConfig
from pipeline.state.tables import IdTable

logger = logging.getLogger(__name__)

LIVE_BASELINES = ("popularity", "recent_popularity")  # measured beside the served model, always


class ModelType(NamedTuple):
    """How a model is configured and built."""

    config: type[msgspec.Struct]
    build: Callable[[ModelContext, str, Any], Model]


MODELS: dict[str, ModelType] = {
    "attention": ModelType(AttentionConfig, AttentionModel),
    "sasrec": ModelType(SasRecConfig, SasRecModel),
    "ncf": ModelType(NcfConfig, NcfModel),
    "popularity": ModelType(PopularityConfig, popularity_model),
    "recent_popularity": ModelType(RecentPopularityConfig, popularity_model),
    "markov": ModelType(MarkovConfig, markov),
    "item_knn": ModelType(ItemKnnConfig, item_knn),
    "session_knn": ModelType(SessionKnnConfig, SessionKnnModel),
    "isgd": ModelType(FactorConfig, IsgdModel),
    "biased_mf": ModelType(BiasedMfConfig, BiasedMfModel),
}


class Variant(NamedTuple):
    """A model that runs under a name of its own: its type, and its configuration."""

    name: str
    type: str
    config: Any


def variant_of(model: ModelConfig, name: str, options: Mapping[str, Any] | None = None) -> Variant:
    """Return the variant that `[model.NAME]` configures; `options` replace what the table says.

    Raises ValueError for an unknown type or key, or a value out of range.
    """
    table = {**model.tables.get(name, {}), **(options or {})}
    kind = table.pop("type", name)
    if kind not in MODELS:
        what = f"model.{name}.type" if "type" in model.tables.get(name, {}) else "model.name"
        raise ValueError(f"{what} = {kind!r}: expected one of {', '.join(MODELS)}")
    try:
        return Variant(name, kind, msgspec.convert(table, MODELS[kind].config, strict=False))
    except msgspec.ValidationError as error:
        raise ValueError(f"model.{name}: {error}") from None


def configured(model: ModelConfig) -> list[Variant]:
    """Return the served model, its shadows and the live baselines, in this order.

    Raises ValueError where a table is wrong, or one configures no model that runs.
    """
    names = list(dict.fromkeys((model.name, *model.shadows)))
    if unused := sorted(model.tables.keys() - {*names, *MODELS}):
        known = ", ".join(MODELS)
        raise ValueError(f"model.{unused[0]}: expected the name of a model or a shadow, or one of {known}")
    for name in model.tables.keys() - {*names}:
        variant_of(model, name)
    names += [line for line in LIVE_BASELINES if line not in names]
    return [variant_of(model, name) for name in names]


def history_of(variants: Sequence[Variant]) -> int:
    """Return how many interactions a user are kept: the longest history that is asked for."""
    return max(REACH, *(getattr(each.config, "history", 0) for each in variants))


def lists_of(served: Variant) -> tuple[int, ...]:
    """Return the popularity lists that candidates are drawn from."""
    if served.type in ("popularity", "recent_popularity"):
        return (HALF_LIFE_COLUMNS.get(served.config.half_life, HALF_LIFE_COLUMNS["1000"]),)
    if hasattr(served.config, "popularity"):
        return (HALF_LIFE_COLUMNS[served.config.popularity],)
    return LISTS_SHOWN


def build_model(context: ModelContext, variant: Variant) -> Model:
    """Return a variant's model, with nothing learned."""
    return MODELS[variant.type].build(context, variant.name, variant.config)


def restart_models(models: Sequence[Model], restarted: Mapping[str, str], items: IdTable) -> None:
    """Initialise the rows of models without parameters in the checkpoint.

    `restarted` names them, each with the reason; "": logged already.
    """
    for model in models:
        if model.name in restarted:
            ids = list(items.row_of)
            model.init_rows("item", items.rows(ids), ids)
            if why := restarted[model.name]:
                logger.warning("model %s restarts and learns from the next event on: %s", model.name, why)
