"""Named columns: one mechanism to grow, clear, save, move and digest all that the state and models keep."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Axis = Literal["user", "item", "none"]
AnyArray = npt.NDArray[Any]
Rows = npt.NDArray[np.integer]


@dataclass(slots=True)
class Column:
    """One array; `data` is replaced when it grows, so read it at every use.

    `fill` is the value of a row that holds nothing. `of_items`: the values are item rows, -1 for none. `own`:
    user rows of it mean something to this process's model alone, as factors that belong to its item vectors:
    they are not taken from another worker's shard. `stretch` is an axis with a length that a setting or a
    version chooses, -1 for none: what was saved in another length is cut there, or filled up.
    """

    data: AnyArray
    axis: Axis
    fill: float = 0
    of_items: bool = False
    stretch: int = -1
    own: bool = False


class HasColumns(Protocol):
    """Anything that keeps columns."""

    def columns(self) -> dict[str, Column]:
        """Return the columns by name; names are unique in a store and never change."""


class Store:
    """A part of the state or a model that keeps columns among its attributes."""

    def columns(self) -> dict[str, Column]:
        """Return the columns by name: `attribute`, or `attribute_key` of a dictionary or store."""
        found: dict[str, Column] = {}
        for name, value in vars(self).items():
            if isinstance(value, Column):
                found[name] = value
                continue
            parts = value.columns() if isinstance(value, Store) and name[0] != "_" else value
            if isinstance(parts, dict):
                found |= {f"{name}_{key}": part for key, part in parts.items() if isinstance(part, Column)}
        return found


def grow(stores: Iterable[HasColumns], axis: Axis, rows: int) -> None:
    """Make room for `rows` rows in every column of `axis`; what is there stays."""
    for store in stores:
        for column in store.columns().values():
            held = column.data.shape[0]
            if column.axis == axis and held < rows:
                grown = np.full((rows, *column.data.shape[1:]), column.fill, column.data.dtype)
                grown[:held] = column.data
                column.data = grown


def clear(stores: Iterable[HasColumns], axis: Axis, rows: Rows) -> None:
    """Reset rows to their fill value, so that the next id finds nothing of the last one."""
    if rows.size == 0:
        return
    for store in stores:
        for column in store.columns().values():
            if column.axis == axis:
                column.data[rows] = column.fill


def remove_references(
    stores: Iterable[HasColumns], axis: Axis, start: int, stop: int, doomed_M: npt.NDArray[np.bool_]
) -> None:
    """Replace doomed item rows by -1 in rows `start <= row < stop` of the columns of `axis` with items."""
    for store in stores:
        for column in store.columns().values():
            if column.axis == axis and column.of_items:
                part = column.data[start:stop]
                part[(part >= 0) & doomed_M[part]] = -1


def nbytes(stores: Iterable[HasColumns]) -> int:
    """Return the bytes that the columns take."""
    return sum(column.data.nbytes for store in stores for column in store.columns().values())


def translate(values: AnyArray, new_of_old: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Map item rows through a table (rows without a successor are -1 there); -1 stays."""
    if new_of_old.size == 0:
        return np.full(values.shape, -1, np.int32)
    return np.where(values >= 0, new_of_old[values], np.int32(-1)).astype(np.int32)


def update_digest(
    digest: "hashlib._Hash", name: str, column: Column, rows: Rows, canonical_M: npt.NDArray[np.int32]
) -> None:
    """Add `rows` of a column (all of it when it has no axis) to a digest, item rows as canonical numbers.

    Arrays are hashed by dtype, shape and bytes; NaN and negative zero count as they are stored.
    """
    data = column.data if column.axis == "none" else column.data[rows]
    if column.of_items:
        data = translate(data, canonical_M)
    digest.update(f"{name}{data.dtype.str}{data.shape}".encode())
    digest.update(np.ascontiguousarray(data).tobytes())
