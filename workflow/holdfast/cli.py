"""The command line: ``holdfast list <section>`` shows what the registries hold, ``holdfast tables`` writes
the tables of what a run has recorded so far.

What torch is not needed for does not import it: help, errors, and the data sets.
"""

import argparse
import ast
import json
import os
import re
import shutil
import sys
import textwrap

from holdfast import modules
from holdfast.errors import HoldfastError
from holdfast.schema import closest

PUBLISHED_SIZE = 256  # px; the side of the images that the parameters of deepfake models are counted at
WIDEST, NARROWEST = 110, 30  # characters: of a line, and of the last column of a table
NO_END = re.compile(r"(?:\b(?:[A-Z]|al|e\.g|i\.e|cf|vs|Figs?|Eqs?|Sec))\.$")


def main(argv=None):
    """Run the command line; the exit code: 0, or 1 for a :class:`HoldfastError`, told on stderr."""
    try:
        try:
            _run(argv)
        except HoldfastError as error:
            print(f"\nError: {error}\n", file=sys.stderr, flush=True)
            return 1
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has what it wants; what Python flushes at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(argv):
    parser = argparse.ArgumentParser(prog="holdfast", description="Tools of Holdfast beside its pipeline.")
    commands = parser.add_subparsers(dest="command", required=True)
    lister = commands.add_parser("list", help="show what there is", description="Show what there is.")
    lister.add_argument("section", help=f"one of {', '.join(LISTS)}")
    lister.add_argument("names", nargs="*", metavar="name", help="only these of the section")
    lister.add_argument("--json", action="store_true", help="one JSON list of objects")
    tables = "write the tables of the records that a run has so far"
    tabler = commands.add_parser(
        "tables", help=tables, description=f"{tables.capitalize()}; what is not measured yet, they say."
    )
    tabler.add_argument(
        "--config", nargs="+", default=["config.yaml"], metavar="FILE", help="of the run, a preset after it"
    )
    tabler.add_argument("--records", metavar="FOLDER", help="default: records in the config's results")
    tabler.add_argument("--into", metavar="FOLDER", default="tables", help="for the CSV files (%(default)s)")
    tabler.add_argument("--only", nargs="+", metavar="TABLE", help="such as table_I; default: all")
    arguments = parser.parse_args(argv)
    if arguments.command == "tables":
        for path in _tables(arguments):
            print(path)
        return
    rows = listed(arguments.section, arguments.names)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        # A file or a pipe has no width of its own.
        width = min(WIDEST, shutil.get_terminal_size((100, 0)).columns)
        print(laid_out([_cells(row) for row in rows], width))


def _tables(arguments):
    from holdfast import config
    from holdfast.stages.publish import tables_so_far  # imports torch

    found = config.read(*arguments.config)
    records = arguments.records or os.path.join(found["results"], "records")
    return tables_so_far(found, records, arguments.into, arguments.only)


def listed(section, names=()):
    """What is registered in a section, one dictionary of JSON-able facts each.

    Args:
        section: a key of :data:`LISTS`.
        names: registered names, only these and in this order; none: all.

    Raises:
        HoldfastError: there is no such section, or nobody registered a name.
    """
    if section not in LISTS:
        nearest = closest(section.lower(), LISTS) or next(iter(LISTS))
        raise HoldfastError(
            f"there is no section '{section}' to list",
            found=section,
            expected=", ".join(LISTS),
            repair=f"write `holdfast list {nearest}`",
        )
    known = sorted(modules.registered(section))
    for name in names:
        if name not in known:
            nearest = closest(name.lower(), known)
            raise HoldfastError(
                f"nobody registered '{name}' in {section}",
                found=name,
                expected=", ".join(known),
                repair=f"write `holdfast list {' '.join(filter(None, (section, nearest)))}`",
            )
    return LISTS[section](list(names) or known)


def _deepfakes(names):
    import torch

    from holdfast.deepfakes import DEEPFAKES

    rows = []
    for name in names:
        with torch.device("meta"):
            model = DEEPFAKES[name](_defaults("deepfakes", name), PUBLISHED_SIZE)
        counts = {part: _parameters(network) for part, network in model.networks.items()}
        rows.append(
            {
                "name": name,
                **_about(model, name),
                "image_size": PUBLISHED_SIZE,
                # A part of a checkpoint that holds no parameters (images, say) is no network.
                "parameters": {part: count for part, count in counts.items() if count},
                "attributes": list(model.attributes),
            }
        )
    return rows


def _detectors(names):
    import torch

    from holdfast.detectors import DETECTORS

    rows = []
    for name in names:
        with torch.device("meta"):
            detector = DETECTORS[name](_defaults("detectors", name))
        rows.append({"name": name, **_about(detector, name), "parameters": _parameters(detector.network)})
    return rows


def _defences(names):
    from holdfast.defences import DEFENCES

    texts = _docstrings("defences")
    return [
        {
            "name": name,
            "title": DEFENCES[name].title,
            "form": _form(DEFENCES[name]),
            "description": first_sentence(texts[name]),
        }
        for name in names
    ]


def _form(defence):
    """Whether one perturbation protects all faces."""
    if defence.universal:
        return "universal"
    return "per image, from a universal one" if defence.from_universal else "per image"


def _datasets(names):
    texts = _docstrings("datasets")
    return [{"kind": name, "description": first_sentence(texts[name])} for name in names]


def _metrics(names):
    from holdfast.metrics import METRICS

    return [
        {
            "name": name,
            "unit": METRICS[name].unit,
            "better_defence": METRICS[name].better_defence,
            "better_by_pair": dict(METRICS[name].better_by_pair),
            "definition": METRICS[name].definition,
        }
        for name in names
    ]


#: {section: function of registered names to one dictionary of facts each}
LISTS = {
    "deepfakes": _deepfakes,
    "detectors": _detectors,
    "defences": _defences,
    "datasets": _datasets,
    "metrics": _metrics,
}


def _defaults(section, name):
    settings = modules.registered(section)[name]
    return {key: setting["default"] for key, setting in settings.items() if "default" in setting}


def _about(thing, name):
    """Title, paper and licence of a model; None for what its class does not say."""
    return {
        "title": getattr(thing, "title", name),
        "paper": getattr(thing, "paper", None),
        "licence": getattr(thing, "licence", None),
    }


def _parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def _docstrings(section):
    """{registered name: docstring of its module}, read from the text as modules.registered does."""
    found = {}
    for path in sorted((modules.PACKAGE / modules.SECTIONS[section]).glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node in module.body:
            if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)):
                continue
            if ast.unparse(node.targets[0]) == "REGISTER":
                names = [ast.literal_eval(key) for key in node.value.keys]
                found.update(dict.fromkeys(names, ast.get_docstring(module) or ""))
    return found


def first_sentence(text):
    """The first sentence of a docstring on one line; initials and "et al." end none."""
    words = text.split("\n\n")[0].split()
    for count, word in enumerate(words, start=1):
        bare = word.rstrip("\"')]")
        if bare.endswith((".", "!", "?")) and not NO_END.search(bare):
            return " ".join(words[:count])
    return " ".join(words)


def _cells(row):
    """A row of :func:`listed` as {column: paragraphs}, for people."""
    row = dict(row)
    # One column for one question: the direction, or the direction by what is compared.
    row["better_defence"] = row.pop("better_by_pair", None) or row.get("better_defence")
    size = row.pop("image_size", None)
    return {
        f"parameters at {size} px" if size and column == "parameters" else column: _paragraphs(value)
        for column, value in row.items()
    }


def _paragraphs(value):
    if value is None or value == "":
        return []
    if isinstance(value, dict):
        texts = {key: " ".join(_paragraphs(part)) for key, part in value.items()}
        left, right = max(map(len, texts), default=0), max(map(len, texts.values()), default=0)
        align = ">" if all(isinstance(part, int) for part in value.values()) else "<"
        return [f"{key:<{left}}  {text:{align}{right}}".rstrip() for key, text in texts.items()]
    if isinstance(value, list):
        return [", ".join(map(str, value))]
    return [f"{value:,}" if isinstance(value, int) else str(value)]


def laid_out(rows, width):
    """Rows of {column: paragraphs} as a table, or one block each where a table would be too narrow.

    No line is longer than `width`, except where a single word is.
    """
    columns = [column for column in (rows[0] if rows else ()) if any(row[column] for row in rows)]
    sizes = {
        column: max([len(column), *(len(text) for row in rows for text in row[column])]) for column in columns
    }
    *first, last = columns or [""]
    left = width - sum(sizes[column] + 2 for column in first)
    if columns and left >= min(sizes[last], NARROWEST):
        sizes[last] = min(sizes[last], left)
        header = {column: [column.upper().replace("_", " ")] for column in columns}
        lines = [line for row in [header, *rows] for line in _table_row(row, sizes)]
    else:
        lines = [line for row in rows for line in ["", *_block(row, columns, width)]][1:]
    return "\n".join(lines)


def _table_row(row, sizes):
    cells = [_wrapped(row[column], size) for column, size in sizes.items()]
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        pairs = zip(parts, sizes.values(), strict=True)
        yield "  ".join(f"{part:<{size}}" for part, size in pairs).rstrip()


def _block(row, columns, width):
    yield from _wrapped(row[columns[0]], width)
    shown = [column for column in columns[1:] if row[column]]
    size = max(map(len, columns))
    for column in shown:
        label = column.replace("_", " ")
        for line in _wrapped(row[column], max(1, width - size - 4)):
            yield f"  {label:<{size}}  {line}"
            label = ""


def _wrapped(paragraphs, width):
    return [
        line
        for text in paragraphs
        # A line that fits stays as it is: its spaces align it with the others.
        for line in (
            [text]
            if len(text) <= width
            else textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        )
    ]
