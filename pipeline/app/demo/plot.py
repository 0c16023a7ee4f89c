"""Lines over the stream's events, drawn with braille dots, two by four a cell; lines differ without colour.

Axes: M = lines, P = points, W = cells across, H = cells down, X = dots across (2 W), Y = dots down (4 H).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

BITS_YX = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of the dots in Unicode
BLANK = 0x2800  # the braille cell without a dot
PATTERNS = ("111111", "111000", "000010", "101010")  # over the dots across; all are visible where lines meet


class Canvas(NamedTuple):
    """The dots of each cell as bits, and the line of each cell, -1: none; both [H, W]."""

    bits_HW: Ints
    line_HW: Ints

    def text(self, row: int) -> str:
        """Return a row of cells; a cell without a dot is a space."""
        return "".join(chr(BLANK + bits) if bits else " " for bits in self.bits_HW[row].tolist())


def draw(x_P: Floats, y_MP: Floats, width: int, height: int) -> Canvas:
    """Draw lines through points onto width x height cells that span 0 to 1 both ways.

    x_P does not decrease, [P]; y_MP is [M, P] with NaN where a line has no point yet. A cell of several
    lines belongs to the first of them.
    """
    bits_HW = np.zeros((height, width), np.int64)
    line_HW = np.full((height, width), -1)
    for line in reversed(range(len(y_MP))):  # the first one over the others
        pattern, known_P = PATTERNS[line % len(PATTERNS)], ~np.isnan(y_MP[line])
        if not known_P.any():
            continue
        for x, low, high in _columns(x_P[known_P], y_MP[line, known_P], width, height):
            if pattern[x % len(pattern)] == "0":
                continue
            for y in range(low, high + 1):
                bits_HW[y // 4, x // 2] |= BITS_YX[y % 4, x % 2]
                line_HW[y // 4, x // 2] = line
    return Canvas(bits_HW, line_HW)


def sample(line: int, width: int = 3) -> str:
    """Return a short sample of a line, for a legend."""
    y_MP = np.full((line + 1, 2), np.nan)
    y_MP[line] = 2 / 3  # the second of four dots
    return draw(np.array([0.0, 1.0]), y_MP, width, 1).text(0)


def cell_of(x: float, width: int) -> int:
    """Return the cell across of `x`, the last one for values beyond 1.

    >>> cell_of(0.5, 41), cell_of(1.2, 41)
    (20, 40)
    """
    return min(max(round(x * (2 * width - 1)), 0), 2 * width - 1) // 2


def place_labels(width: int, labels: Sequence[tuple[int, str]]) -> str:
    """Return a row of `width` cells with each text centred on its cell where there is room.

    A text that is too long or would touch an earlier one of the list is left out.

    >>> place_labels(20, [(19, "end"), (10, "middle"), (12, "lost"), (0, "0")])
    '0      middle    end'
    """
    row = " " * width
    for cell, text in labels:
        start = min(max(cell - len(text) // 2, 0), width - len(text))
        end = start + len(text)
        if start >= 0 and row[max(start - 1, 0) : end + 1].isspace():
            row = row[:start] + text + row[end:]
    return row


def _columns(x_P: Floats, y_P: Floats, width: int, height: int) -> list[tuple[int, int, int]]:
    """Return (x, highest dot, lowest dot) of every column from the first point to the last, connected."""
    dots_P = np.clip(x_P, 0.0, 1.0) * (2 * width - 1)
    x_X = np.arange(round(float(dots_P[0])), round(float(dots_P[-1])) + 1)
    share_X = np.clip(np.interp(x_X, dots_P, y_P), 0.0, 1.0)
    y_X = np.rint((1.0 - share_X) * (4 * height - 1)).astype(np.int64)
    before_X = np.concatenate((y_X[:1], y_X[:-1]))
    # a column ends beside the dot of the column before: a slope is one dot thick
    low_X = np.minimum(y_X, before_X + (before_X < y_X))
    high_X = np.maximum(y_X, before_X - (before_X > y_X))
    return list(zip(x_X.tolist(), low_X.tolist(), high_X.tolist(), strict=True))
