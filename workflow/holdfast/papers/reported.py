"""The cells that the reproduced papers report: workflow/papers/reported.csv, checked when it is read."""

import csv
import math
from pathlib import Path

import pandas as pd

from holdfast.errors import HoldfastError

REPORTED = Path(__file__).resolve().parents[2] / "papers" / "reported.csv"

COLUMNS = [
    "paper",
    "table",
    "dataset",
    "subject",
    "method",
    "metric",
    "state",
    "value",
    "better_defence",
    "note",
]
KEY = COLUMNS[: COLUMNS.index("value")]
_NEEDED = ["paper", "table", "subject", "method", "metric"]


def load_reported(path=REPORTED):
    """Every reported cell, in the papers' order.

    Args:
        path: a CSV file with the columns of :data:`COLUMNS`. Rates are fractions.

    Returns:
        DataFrame with these columns: ``value`` float64, all others text, "" where there is nothing
        (``state``, ``note``, and ``dataset`` of a number that a paper states in its text).

    Raises:
        HoldfastError: the file is missing, a column is missing or unknown, a value is no finite number,
            a name is empty, a direction is neither up nor down, or a cell is there twice; names the row
            (the line of the file).
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HoldfastError(
            f"cannot read {path}", found=str(error), expected="a CSV file in UTF-8 with the reported cells"
        ) from error
    header = rows[0][1] if rows else []
    if header != COLUMNS:
        raise HoldfastError(
            f"{path}, row 1: wrong columns", found=", ".join(header) or "nothing", expected=", ".join(COLUMNS)
        )
    cells, seen = [], {}
    for number, row in rows[1:]:
        cell = _checked(row, f"{path}, row {number}")
        key = tuple(cell[name] for name in KEY)
        if key in seen:
            raise HoldfastError(
                f"{path}, row {number}: the same cell as row {seen[key]}",
                found=", ".join(key),
                expected="each cell once",
                repair="remove one of the two rows",
            )
        seen[key] = number
        cells.append(cell)
    return pd.DataFrame(cells, columns=COLUMNS)


def _checked(row, place):
    if len(row) != len(COLUMNS):
        raise HoldfastError(f"{place}: wrong number of cells", found=len(row), expected=len(COLUMNS))
    cell = {name: text.strip() for name, text in zip(COLUMNS, row, strict=True)}
    for name in _NEEDED:
        if not cell[name]:
            raise HoldfastError(f"{place}: '{name}' is empty", expected="a name")
    try:
        value = float(cell["value"])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HoldfastError(
            f"{place}: 'value' is no number", found=repr(cell["value"]), expected="a finite number"
        )
    if cell["better_defence"] not in ("up", "down"):
        raise HoldfastError(
            f"{place}: 'better_defence' is unknown", found=repr(cell["better_defence"]), expected="up or down"
        )
    return {**cell, "value": value}
