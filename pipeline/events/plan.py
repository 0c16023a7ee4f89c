"""Where our fields lie in records: trees of the names that lead there, and structs that parse such trees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pipeline.events.fields import ARRAY, Names, array_in, is_path
from pipeline.settings import KEY_FIELD

Steps = tuple[str, ...]  # attributes from a parsed object to a value
Tree = dict[str, "Node"]  # by the names in records

# what a record may hold where a path expects an object: the field is missing then, nothing worse
NO_OBJECT = str | int | float | bool | list[Any] | None
_TIMES: dict[str, Any] = {"iso": str, "auto": int | float | str}


class Node(NamedTuple):
    """A name in a record: its attribute once parsed, and the names below it, or our field."""

    attribute: str
    below: "Tree | str"


class FieldPath(NamedTuple):
    """One name of a field, the places where it may lie, the first choice first; `inside` the array or not."""

    name: str
    places: tuple[Steps, ...]
    inside: bool

    def shown(self, number: int | None) -> str:
        """Return the name for a message, with the number of the element."""
        return self.name if number is None else self.name.replace(ARRAY, f"[{number}]")


class Plan(NamedTuple):
    """All paths to our fields, the trees of records and elements that they lead through, and the steps to
    the array, empty without one.
    """

    paths: dict[str, tuple[FieldPath, ...]]
    record: Tree
    element: Tree
    array: Steps

    def inside(self, field: str) -> bool:
        """Return whether a field may lie in the array."""
        return any(path.inside for path in self.paths[field])


def plan_of(choices: Mapping[str, Names]) -> Plan:
    """Return the paths to fields from their names."""
    names = [name for each in choices.values() for name in each]
    roots = {name.partition(ARRAY)[0].split(".")[0] for name in names if is_path(name)}
    record: Tree = {}
    element: Tree = {}
    paths = {
        # the default name of a field may be that of an object here: then the field is absent
        field: tuple(
            _path(field, name, not place, record, element)
            for place, name in enumerate(each)
            if name not in roots
        )
        for field, each in choices.items()
    }
    array = array_in(names)
    return Plan(paths, record, element, _plant(record, array.split("."), ARRAY) if array else ())


def kind_of(field: str, time_unit: str) -> Any:
    """Return the type of a field; the time's follows its unit, all others are text or a whole number."""
    if field == "timestamp_ms":
        return _TIMES.get(time_unit, int | float)
    return float if field == "value" else str | int


def struct_of(
    tree: Tree, leaf: Callable[[str], tuple[Any, ...]], absent: Mapping[str, Any] | None = None
) -> Any:
    """Return a struct for a tree. `leaf` gives a field's type, and its default where it is optional;
    `absent` are attributes that no name leads to.
    """
    members: list[Any] = []
    for attribute, below in tree.values():
        if isinstance(below, str):
            members.append((attribute, *leaf(below)))
        else:
            members.append((attribute, struct_of(below, leaf) | NO_OBJECT, None))
    rename = {node.attribute: name for name, node in tree.items()}
    return msgspec.defstruct(
        "Group", members, rename=rename, namespace=dict(absent or {}), gc=False, kw_only=True
    )


def _path(field: str, name: str, first: bool, record: Tree, element: Tree) -> FieldPath:
    """Add a name to the tree of records or of elements; the first one's attribute is our own name."""
    _, array, after = name.partition(ARRAY)
    if array:
        steps = after.removeprefix(".").split(".") if after else []
        return FieldPath(name, (_plant(element, steps, field),), True)
    own = field if first else ""
    if name == KEY_FIELD:
        if first:  # the attribute that is set from the key
            _plant(record, [name], field, own)
        return FieldPath(name, (), False)
    places = [_plant(record, [name], field, own)]
    if is_path(name):  # a field of the very name comes first
        places.append(_plant(record, name.split("."), field))
    return FieldPath(name, tuple(places), False)


def _plant(tree: Tree, path: Sequence[str], field: str, own: str = "") -> Steps:
    """Add a path to a tree, and return the attributes along it."""
    steps = []
    for place, name in enumerate(path, 1):
        below: Tree | str = field if place == len(path) else {}
        node = tree.setdefault(name, Node(own or f"at_{len(tree)}", below))
        steps.append(node.attribute)
        if isinstance(node.below, dict):
            tree = node.below
    return tuple(steps)
