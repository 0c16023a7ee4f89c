"""Which figures of a checkpoint still hold: those of a model that starts anew, or is no longer the one
served, would be told as another's.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def drop_stale_metrics(
    arrays: Mapping[str, npt.NDArray[Any]], restarted: Collection[str], another: bool
) -> Arrays:
    """Return the figures ("<measure>/<name>") that may be loaded.

    A model of `restarted` loses its own. `another`: what is served is not what was served, so what the drift
    detectors watched, and how often lists of late were taken up, is another model's.

    >>> held = {"quality/model.a.sums": 1, "quality/model.b.sums": 2, "drift/loss.window": 3}
    >>> drop_stale_metrics(held, ["a"], True)
    {'quality/model.b.sums': 2}
    """
    lost = [f"/model.{name}." for name in restarted]
    others = ("drift/", "quality/served.recent") if another else ()
    return {
        name: array
        for name, array in arrays.items()
        if "/" in name and not any(part in name for part in lost) and not name.startswith(others)
    }


def of_measure(arrays: Mapping[str, npt.NDArray[Any]], measure: str) -> Arrays:
    """Return one measure's arrays by the names that it gave them.

    >>> of_measure({"drift/counts": 1, "quality/served": 2}, "drift")
    {'counts': 1}
    """
    return {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{measure}/")}
