"""The models by name. To add one: its file, and a line in `MODELS`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from pipeline.features.pair_table import PairTable
from pipeline.features.popularity import LISTS_SHOWN
from pipeline.features.transitions import REACH
from pipeline.models.attention import AttentionConfig, AttentionModel
from pipeline.models.baselines.biased_mf import BiasedMfModel
from pipeline.models.baselines.isgd import IsgdModel
from pipeline.models.baselines.neighbours import BackOff, ItemKnnModel, PairsModel
from pipeline.models.baselines.popularity import HALF_LIFE_COLUMNS, FadingModel, PopularityModel
from pipeline.models.baselines.session_knn import SessionKnnModel
from pipeline.models.model import Model, ModelContext
from pipeline.models.ncf import NcfConfig, NcfModel
from pipeline.models.sasrec import SasRecConfig, SasRecModel
from pipeline.settings import ModelConfig
from pipeline.state.tables import IdTable

logger = logging.getLogger(__name__)

LIVE_BASELINES = ("popularity", "recent_popularity")  # measured beside the served model, always
KNN_REACH, KNN_FADE = 10, 0.5  # of pairs that item-kNN counts on its own
MINUTE_MS = 60_000
HalfLife = str  # events as text, "24h" or "all"


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PopularityConfig(_Config, frozen=True):
    """Settings of `popularity` and `recent_popularity`."""

    half_life: HalfLife = "all"


class RecentPopularityConfig(_Config, frozen=True):
    """Settings of `recent_popularity`."""

    half_life: HalfLife = "1000"


class MarkovConfig(_Config, frozen=True):
    """Settings of `markov`. `popularity`: the half-life of what the counts are backed off to, by `weight`."""

    half_life: HalfLife = "10000"
    popularity: Literal["all", "300", "1000", "24h"] = "1000"
    weight: float = 1.0


class ItemKnnConfig(_Config, frozen=True):
    """Settings of `item_knn`. Without a half-life it ranks by the transitions of the count features."""

    directed: bool = True
    half_life: HalfLife = ""
    popularity: Literal["all", "300", "1000", "24h"] = "1000"
    weight: float = 1.0


class SessionKnnConfig(_Config, frozen=True):
    """Settings of `session_knn`. A gap of 0: all of a user's events are one session."""

    gap_minutes: int = 30
    after: bool = False
    popularity: Literal["all", "300", "1000", "24h"] = "1000"
    weight: float = 1.0


class IsgdConfig(_Config, frozen=True):
    """Settings of `isgd`."""

    dim: int = 16
    rate: float = 0.1
    negatives: int = 3


class BiasedMfConfig(_Config, frozen=True):
    """Settings of `biased_mf`."""

    dim: int = 16
    rate: float = 0.005
    negatives: int = 1


def _popularity(context: ModelContext, name: str, config: Any) -> Model:
    popularity = context.bank.popularity
    if config.half_life in HALF_LIFE_COLUMNS:
        return PopularityModel(popularity, context.items, config.half_life, name)
    return FadingModel(popularity, context.items, float(config.half_life), name)


def _markov(context: ModelContext, name: str, config: MarkovConfig) -> Model:
    pairs = PairTable(context.items.capacity, 1, 1.0, _events(config.half_life), both=False)
    back_off = BackOff(config.popularity, config.weight)
    return PairsModel(pairs, context.bank.popularity, context.items, back_off, name, context.seed)


def _item_knn(context: ModelContext, name: str, config: ItemKnnConfig) -> Model:
    items, bank, back_off = context.items, context.bank, BackOff(config.popularity, config.weight)
    if not config.half_life:
        return ItemKnnModel(bank.transitions, bank.popularity, items, config.directed, back_off, name)
    pairs = PairTable(
        items.capacity, KNN_REACH, KNN_FADE, _events(config.half_life), both=not config.directed
    )
    return PairsModel(pairs, bank.popularity, items, back_off, name, context.seed)


def _session_knn(context: ModelContext, name: str, config: SessionKnnConfig) -> Model:
    gap_ms = config.gap_minutes * MINUTE_MS if config.gap_minutes else 2**62
    back_off = BackOff(config.popularity, config.weight)
    return SessionKnnModel(
        context.users, context.items, context.bank.popularity, gap_ms, config.after, back_off, name
    )


def _isgd(context: ModelContext, name: str, config: IsgdConfig) -> Model:
    return IsgdModel(
        context.users, context.items, config.dim, config.rate, config.negatives, name, context.seed
    )


def _biased_mf(context: ModelContext, name: str, config: BiasedMfConfig) -> Model:
    return BiasedMfModel(
        context.users, context.items, config.dim, config.rate, config.negatives, name, context.seed
    )


def _events(half_life: HalfLife) -> float:
    return math.inf if half_life == "all" else float(half_life)


class ModelType(NamedTuple):
    """How a model is configured and built."""

    config: type[msgspec.Struct]
    build: Callable[[ModelContext, str, Any], Model]


MODELS: dict[str, ModelType] = {
    "attention": ModelType(AttentionConfig, AttentionModel),
    "sasrec": ModelType(SasRecConfig, SasRecModel),
    "ncf": ModelType(NcfConfig, NcfModel),
    "popularity": ModelType(PopularityConfig, _popularity),
    "recent_popularity": ModelType(RecentPopularityConfig, _popularity),
    "markov": ModelType(MarkovConfig, _markov),
    "item_knn": ModelType(ItemKnnConfig, _item_knn),
    "session_knn": ModelType(SessionKnnConfig, _session_knn),
    "isgd": ModelType(IsgdConfig, _isgd),
    "biased_mf": ModelType(BiasedMfConfig, _biased_mf),
}


class Variant(NamedTuple):
    """A model that runs under a name of its own: its type, and its configuration."""

    name: str
    type: str
    config: Any


def variant_of(model: ModelConfig, name: str, options: Mapping[str, Any] | None = None) -> Variant:
    """Return the variant that `[model.NAME]` configures; `options` replace what the table says.

    Raises ValueError for a type that is none, an unknown key or a value out of range.
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

    `restarted` names them, each with the reason; "": the settings are the reason, and that is logged already.
    """
    for model in models:
        if model.name in restarted:
            ids = list(items.row_of)
            model.init_rows("item", items.rows(ids), ids)
            if why := restarted[model.name]:
                logger.warning("model %s restarts and learns from the next event on: %s", model.name, why)
