"""The counts that the streaming memories speak from, in one hand."""

from typing import NamedTuple

from pipeline.state.pairs import Pairs
from pipeline.state.popularity import Popularity
from pipeline.state.sessions import Sessions
from pipeline.state.successors import Successors


class Counts(NamedTuple):
    """`latest`: what came right after what, with a half-life; `successors` fade on a drift alarm alone."""

    popularity: Popularity
    successors: Successors
    latest: Pairs
    sessions: Sessions
