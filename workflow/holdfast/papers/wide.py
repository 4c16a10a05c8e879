"""A tidy table laid out like the paper's."""

import pandas as pd

from holdfast.papers.layouts import NOT_MEASURED, NOT_REPORTED, NOTHING, layout_named, metric_rank


def wide(name, table):
    """A table laid out like the paper's: each cell "reported / measured", "–" for a missing number.

    Args:
        name: "table_I" ...; table: its tidy DataFrame.

    Returns:
        DataFrame of text with the paper's rows as index and its columns as columns; "" where the tidy
        table has no such cell.
    """
    rows, columns, cells = layout_of(name, table)
    text = [[_beside(cells.get((row, column))) for column in columns] for row in rows]
    layout = layout_named(name)
    return pd.DataFrame(
        text,
        index=pd.MultiIndex.from_tuples(rows, names=layout["index"]),
        columns=pd.MultiIndex.from_tuples(columns, names=layout["columns"]),
        dtype=object,
    )


def layout_of(name, table):
    """Rows and columns of the paper's layout, and which tidy row stands where.

    Metrics that the paper does not have for this table come after its own. Where more than one attacker
    harvested, the state names him.

    Returns:
        list of row labels (tuples), list of column labels (tuples), {(row, column): tidy row as a dict}.
    """
    layout = layout_named(name)
    several = "attacker" in table and table["attacker"].replace(NOTHING, pd.NA).nunique() > 1
    rows, columns, cells = {}, {}, {}
    for cell in table.to_dict("records"):
        place = dict(cell)
        if several and cell["attacker"] != NOTHING:
            place["state"] = f"{cell['state']}, harvested by {cell['attacker']}"
        row = tuple(place[part] for part in layout["index"])
        column = tuple(place[part] for part in layout["columns"])
        rows.setdefault(row)
        columns.setdefault(column)
        cells[row, column] = cell
    # The rows of a tidy table come in the paper's order, but a column may first be met late.
    parts = [list(dict.fromkeys(column[i] for column in columns)) for i in range(len(layout["columns"]))]
    for i, part in enumerate(layout["columns"]):
        if part == "metric":
            parts[i] = sorted(parts[i], key=metric_rank(layout))
        if part == "state":
            parts[i] = sorted(parts[i], key=lambda state: layout["states"].index(state.split(",")[0]))
    ordered = sorted(columns, key=lambda column: [parts[i].index(label) for i, label in enumerate(column)])
    return list(rows), ordered, cells


def short(text, digits=4):
    """A number of a table to a few significant digits; any other text as it is."""
    try:
        return f"{float(text):.{digits}g}"
    except ValueError:
        return text


def _beside(cell):
    if cell is None:
        return ""
    reported = "–" if cell["reported"] == NOT_REPORTED else cell["reported"]
    measured = "–" if cell["measured"] == NOT_MEASURED else short(cell["measured"])
    return f"{reported} / {measured}"
