"""Lines over the stream's events, drawn with braille dots, two by four a cell; lines differ without colour.

Axes: M = lines, P = points, W = cells across, H = cells down, X = dots across (2 W), Y = dots down (4 H).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BITS_YX = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of the dots in Unicode
BLANK = 0x2800  # the braille cell without a dot
PATTERNS = ("111111", "111000", "000010", "101010")  # over the dots across; all are visible where lines meet
SAMPLE_DOTS_Y = 1  # the row of dots that a line's sample lies on
SCALES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


class Canvas(NamedTuple):
    """The dots of each cell as bits, and the line of each cell, -1: none; both [H, W]."""

    bits_HW: Ints
    line_HW: Ints

    def text(self, row: int) -> str:
        """Return a row of cells; a cell without a dot is a space."""
        return "".join(chr(BLANK + bits) if bits else " " for bits in self.bits_HW[row].tolist())


def scale_for(highest: float) -> float:
    """Return the least round share that is not below a line's highest value.

    >>> scale_for(0.37), scale_for(0.0)
    (0.4, 0.05)
    """
    return next((scale for scale in SCALES if highest <= scale), 1.0)


def draw(x_P: Floats, y_MP: Floats, width: int, height: int, x_end: float, y_top: float) -> Canvas:
    """Draw lines through points onto width x height cells that span 0 to `x_end` and 0 to `y_top`.

    x_P does not decrease, [P]; y_MP is [M, P] with NaN where a line has no point yet. A cell of several
    lines belongs to the first of them.
    """
    bits_HW = np.zeros((height, width), np.int64)
    line_HW = np.full((height, width), -1)
    for line in reversed(range(len(y_MP))):  # the first one over the others
        known_P = ~np.isnan(y_MP[line])
        if not known_P.any():
            continue
        for x, low, high in _runs(x_P[known_P] / x_end, y_MP[line, known_P] / y_top, width, height):
            if not _inked(line, x):
                continue
            for y in range(low, high + 1):
                bits_HW[y // 4, x // 2] |= BITS_YX[y % 4, x % 2]
                line_HW[y // 4, x // 2] = line
    return Canvas(bits_HW, line_HW)


def sample(line: int, width: int = 3) -> str:
    """Return a short sample of a line, for a legend."""
    bits = [
        sum(int(BITS_YX[SAMPLE_DOTS_Y, x % 2]) for x in (2 * cell, 2 * cell + 1) if _inked(line, x))
        for cell in range(width)
    ]
    return "".join(chr(BLANK + cell) if cell else " " for cell in bits)


def cell_of(x: float, x_end: float, width: int) -> int:
    """Return the cell across of `x`, the last one for values beyond `x_end`.

    >>> cell_of(50.0, 100.0, 41), cell_of(120.0, 100.0, 41)
    (20, 40)
    """
    return min(max(round(x / x_end * (2 * width - 1)), 0), 2 * width - 1) // 2


def place_labels(width: int, labels: Sequence[tuple[int, str]]) -> str:
    """Return a row of `width` cells with each text centred on its cell where there is room.

    A text that is too long or would touch an earlier one of the list is left out.

    >>> place_labels(20, [(19, "end"), (10, "middle"), (12, "lost"), (0, "0")])
    '0      middle    end'
    """
    row = [" "] * width
    for cell, text in labels:
        start = min(max(cell - len(text) // 2, 0), width - len(text))
        if start < 0 or any(sign != " " for sign in row[max(start - 1, 0) : start + len(text) + 1]):
            continue
        row[start : start + len(text)] = text
    return "".join(row)


def _inked(line: int, x: int) -> bool:
    pattern = PATTERNS[line % len(PATTERNS)]
    return pattern[x % len(pattern)] == "1"


def _runs(across_P: Floats, up_P: Floats, width: int, height: int) -> list[tuple[int, int, int]]:
    """Return (x, highest dot, lowest dot) of every column from the first point to the last, connected."""
    dots_x, dots_y = 2 * width - 1, 4 * height - 1
    x_P = np.clip(across_P, 0.0, 1.0) * dots_x
    x_X = np.arange(round(float(x_P[0])), round(float(x_P[-1])) + 1)
    y_X = np.rint((1.0 - np.clip(np.interp(x_X, x_P, up_P), 0.0, 1.0)) * dots_y).astype(np.int64)
    before_X = np.concatenate((y_X[:1], y_X[:-1]))
    # a column ends beside the dot of the column before: a slope is one dot thick
    low_X = np.minimum(y_X, np.where(before_X < y_X, before_X + 1, y_X))
    high_X = np.maximum(y_X, np.where(before_X > y_X, before_X - 1, y_X))
    return list(zip(x_X.tolist(), low_X.tolist(), high_X.tolist(), strict=True))
