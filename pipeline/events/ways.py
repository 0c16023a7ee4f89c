"""Ways through a record: the trees of names that our fields lie at, and structs that parse such trees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from pipeline.events.fields import ARRAY, Names, array_in, is_path
from pipeline.settings import KEY_FIELD

Steps = tuple[str, ...]  # attributes from a parsed object to a value
Tree = dict[str, "Node"]  # by the names in records

# what a record may hold where a path looks for an object: then it lacks the field, and is no worse than that
NO_GROUP = str | int | float | bool | list[Any] | None
_TIMES: dict[str, Any] = {"iso": str, "auto": int | float | str}


class Node(NamedTuple):
    """A name in a record: its attribute once parsed, and what lies below, or our field."""

    attribute: str
    below: "Tree | str"


class Way(NamedTuple):
    """One name of a field, the places where that may lie, the first to be looked at first, and whether they
    are in an element of the array."""

    name: str
    places: tuple[Steps, ...]
    inside: bool

    def shown(self, number: int | None) -> str:
        """Return the name for a message, with the number of the element."""
        return self.name if number is None else self.name.replace(ARRAY, f"[{number}]")


class Plan(NamedTuple):
    """All ways to our fields, and the trees of records and of elements that they lead through. `array`: the
    steps to the array, none without one."""

    ways: dict[str, tuple[Way, ...]]
    record: Tree
    element: Tree
    array: Steps

    def inside(self, field: str) -> bool:
        """Return whether a field may lie in the array."""
        return any(way.inside for way in self.ways[field])

    def plain(self) -> bool:
        """Return whether every field lies at the top, under one name."""
        return all(len(ways) <= 1 and not is_path(way.name) for ways in self.ways.values() for way in ways)


def plan_of(choices: Mapping[str, Names]) -> Plan:
    """Return the ways to fields from their names."""
    names = [name for each in choices.values() for name in each]
    roots = {name.partition(ARRAY)[0].split(".")[0] for name in names if is_path(name)}
    record: Tree = {}
    element: Tree = {}
    ways = {
        # a name of ours that no mapping asks for may be that of an object here: then the field is absent
        field: tuple(
            _way(field, name, not place, record, element)
            for place, name in enumerate(each)
            if name not in roots
        )
        for field, each in choices.items()
    }
    array = array_in(names)
    return Plan(ways, record, element, _plant(record, array.split("."), ARRAY) if array else ())


def kind_of(field: str, time_unit: str) -> Any:
    """Return the type of a field; the time's follows its unit, all others are text or a whole number."""
    if field == "timestamp_ms":
        return _TIMES.get(time_unit, int | float)
    # nothing reads the context yet, so that its form is no reason to refuse an event
    return {"value": float, "context": Any}.get(field, str | int)


def struct_of(
    tree: Tree, leaf: Callable[[str], tuple[Any, ...]], absent: Mapping[str, Any] | None = None
) -> Any:
    """Return a struct for a tree. `leaf` gives the type of a field's value, and its default where it need not
    be there; `absent` are attributes that no name leads to."""
    members: list[Any] = []
    for attribute, below in tree.values():
        if isinstance(below, str):
            members.append((attribute, *leaf(below)))
        else:
            members.append((attribute, struct_of(below, leaf) | NO_GROUP, None))
    rename = {node.attribute: name for name, node in tree.items()}
    return msgspec.defstruct(
        "Group", members, rename=rename, namespace=dict(absent or {}), gc=False, kw_only=True
    )


def _way(field: str, name: str, first: bool, record: Tree, element: Tree) -> Way:
    """Plant a name in the tree of records or of elements; the first has our own name as attribute."""
    _, array, after = name.partition(ARRAY)
    if array:
        path = after.removeprefix(".").split(".") if after else []
        return Way(name, (_plant(element, path, field),), True)
    own = field if first else ""
    if name == KEY_FIELD:
        if first:  # the attribute that is set from the key
            _plant(record, [name], field, own)
        return Way(name, (), False)
    places = [_plant(record, [name], field, own)]
    if is_path(name):  # a field of the very name wins
        places.append(_plant(record, name.split("."), field))
    return Way(name, tuple(places), False)


def _plant(tree: Tree, path: Sequence[str], field: str, own: str = "") -> Steps:
    """Add a path to a tree, and return the attributes that lead along it."""
    steps = []
    for place, name in enumerate(path, 1):
        below: Tree | str = field if place == len(path) else {}
        node = tree.setdefault(name, Node(own or f"at_{len(tree)}", below))
        steps.append(node.attribute)
        if isinstance(node.below, dict):
            tree = node.below
    return tuple(steps)
