"""The report of a run: one HTML file that needs nothing else, neither network nor script."""

import base64
import html
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.files import write_text
from holdfast.papers.layouts import NOT_MEASURED, NOT_REPORTED, NOTHING, direction, layout_named
from holdfast.papers.names import OWN_TITLES
from holdfast.papers.tables import titles_of_tables
from holdfast.papers.wide import layout_of, short

_ARROWS = {"up": "↑", "down": "↓"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MANY_COLUMNS = 10

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1220px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 19px; line-height: 1.3; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid #ddd; }
h3 { font-size: 15px; margin: 18px 0 6px; }
p, ul, ol, dl { margin: 8px 0; max-width: 78ch; }
nav ol { columns: 2; column-gap: 32px; padding-left: 22px; }
a { color: #1a4fa3; }
.pale { color: #666; }
.scroll { overflow-x: auto; margin: 8px 0; max-width: 100%; }
.blocks { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px 36px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; line-height: 1.25; }
th, td { padding: 3px 6px; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid #ececec; }
thead th { border-bottom: 1px solid #bbb; vertical-align: bottom; font-weight: 600; text-align: center;
  white-space: normal; }
thead th.corner, tbody th { text-align: left; font-weight: 500; background: #fff; }
td.group, th.group { border-left: 1px solid #d5d5d5; }
tr.first > * { border-top: 1px solid #bbb; }
.reported { display: block; color: #777; font-size: 12px; }
.measured { display: block; font-weight: 600; }
.key { display: inline; }
.sd { display: block; color: #777; font-size: 11px; font-weight: 400; }
.none { color: #999; font-weight: 400; }
sup { line-height: 0; }
sup a { text-decoration: none; padding: 0 1px; }
.foot { list-style: none; padding: 0; font-size: 12.5px; color: #444; }
.foot li { padding-left: 1.6em; text-indent: -1.6em; }
details { margin: 8px 0; }
summary { cursor: pointer; color: #1a4fa3; }
figure { margin: 12px 0; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid #e4e4e4; }
figcaption { font-size: 13px; color: #444; max-width: 78ch; margin-top: 6px; }
.facts th, .facts td { text-align: left; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.bad { color: #a31515; font-weight: 600; }
@media (max-width: 640px) {
  main, header { padding: 0 12px; }
  header { padding-top: 16px; }
  nav ol { columns: 1; }
}
@media print { details > * { display: block; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def write_report(path, plan, tables, figures, health, notes, records=()):
    """Write the report.

    Args:
        path: the HTML file.
        plan: as of :func:`holdfast.papers.tables.build_tables`; a study has a ``skip`` as well.
        tables: {name: DataFrame} of ``build_tables`` or ``read_tables``.
        figures: list of (title, caption, path of a PNG file).
        health: list of dicts, one row each: the health of the deepfake models and of the detectors. Rows that
            begin with the same key make one table. Numbers are shortened; a value ``False`` is set off as a
            failure.
        notes: list of text, one paragraph each: what a reader should know about this run.
        records: the run's records; what their metrics are and the summary of their provenance are shown.

    Raises:
        HoldfastError: a figure is missing, or the disk refuses.
    """
    title = f"Holdfast: results of the preset {plan['preset']}"
    sections = [("notes", "About this run", _notes(plan, notes))]
    if health:
        sections.append(("health", "Health of the attacked models", _health(health)))
    titles = titles_of_tables(plan)
    sections += [(name, titles[name], _table(name, table)) for name, table in tables.items()]
    for i, (heading, caption, picture) in enumerate(figures, start=1):
        sections.append((f"figure_{i}", heading, _figure(heading, caption, picture)))
    sections.append(("metrics", "What the metrics are", _metrics(records)))
    sections.append(("provenance", "Where the numbers come from", _provenance(records)))
    contents = "".join(f'<li><a href="#{name}">{_text(heading)}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{_text(heading)}</h2>{content}</section>'
        for name, heading, content in sections
    )
    write_text(
        path,
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<header><h1>{_text(title)}</h1>{_HOW_TO_READ}</header>\n"
        f"<main><nav><h3>Contents</h3><ol>{contents}</ol></nav>\n{body}</main></body></html>\n",
    )


def _text(value):
    return html.escape(str(value))


_HOW_TO_READ = """
<p class="pale">Protective perturbations against face editing: what the TSDF paper reports, beside what this
run measured.</p>
<h3>How to read it</h3>
<ul>
<li>A cell holds two numbers: <span class="key reported">above, in grey, the paper's</span>;
<span class="key measured">below, in bold, ours</span>. Where a measurement was repeated with several seeds,
± is the standard deviation over them.</li>
<li>A dash is a number that does not exist. A letter leads to the reason, or to a remark, below the table. A
dot is a cell that the table does not have.</li>
<li>↑ and ↓ say which direction is better for the defender. x is an image, x' its protected copy as stored
(8 bit), G a deepfake model.</li>
<li><code>ssim_released</code> and <code>f1_released</code> follow the rules of the code that the paper's
authors released, and so stand beside its numbers; <code>ssim</code>, <code>f1_truth</code> and
<code>harvest_yield</code> are the sound measures, which the paper does not report.
<code>psnr[protected]</code> compares photographs instead of their edits,
<code>harvest_yield[collected]</code> is of all faces that the attacker collects, and
<code>fid[attributes]</code> uses the features of the attribute classifier; the definitions stand at the
end.</li>
<li>Every cell with its n, seeds and exact metric is in the CSV file of the table, in
<code>tables/</code>.</li>
</ul>
"""


def _notes(plan, notes):
    skipped = [
        f"<li>{_text(entry.get('title', name))}: {_text(entry['skip'])}</li>"
        for group in ("datasets", "deepfakes", "detectors", "defences")
        for name, entry in plan[group].items()
        if entry.get("skip")
    ]
    skipped += [
        f"<li>{_text(study['title'])}: {_text(study['skip'])}</li>"
        for study in plan.get("studies", {}).values()
        if study["skip"]
    ]
    rows = [("Models were trained on", _title(plan, "datasets", plan["training_set"]))]
    for group, heading in (
        ("datasets", "Data sets"),
        ("deepfakes", "Deepfake models"),
        ("detectors", "Face detectors"),
        ("defences", "Defences"),
    ):
        titles = [_title(plan, group, name) for name, entry in plan[group].items() if not entry.get("skip")]
        rows.append((heading, ", ".join(titles) or "none"))
    attacker = plan.get("attacker") or {}
    if attacker.get("detector"):
        rows.append(("The attacker harvests with", _title(plan, "detectors", attacker["detector"])))
    if attacker.get("models"):
        titles = [_title(plan, "deepfakes", name) for name in attacker["models"]]
        rows.append(("The attacker retrains", ", ".join(titles)))
    protecting = [name for name, entry in plan["defences"].items() if not entry.get("skip")]
    if attacker.get("defences") and attacker["defences"] != protecting:
        titles = [_title(plan, "defences", name) for name in attacker["defences"]]
        rows.append(("The attacker collects what is protected by", ", ".join(titles)))
    rows.append(("Perturbation seeds", ", ".join(str(seed) for seed in plan["seeds"])))
    if attacker.get("seeds") and attacker["seeds"] != plan["seeds"]:
        rows.append(("The attacker works on seeds", ", ".join(str(seed) for seed in attacker["seeds"])))
    facts = "".join(f"<tr><th>{_text(a)}</th><td>{_text(b)}</td></tr>" for a, b in rows)
    left_out = f"<h3>Left out</h3><ul>{''.join(skipped)}</ul>" if skipped else ""
    paragraphs = "".join(f"<p>{_text(note)}</p>" for note in notes)
    return f'{paragraphs}<div class="scroll"><table class="facts">{facts}</table></div>{left_out}'


def _title(plan, group, name):
    return plan[group].get(name, {}).get("title", OWN_TITLES.get((group, name), name))


def _health(rows):
    first = [next(iter(row)) for row in rows]
    return "".join(
        _health_of_one_kind([row for row, key in zip(rows, first, strict=True) if key == kind])
        for kind in dict.fromkeys(first)
    )


def _health_of_one_kind(rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = ""
    for row in rows:
        cells = [_health_cell(row.get(name, NOTHING)) for name in names]
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _health_cell(value):
    if isinstance(value, bool):
        return "<td>yes</td>" if value else '<td class="bad">no</td>'
    if isinstance(value, int | float):
        return f"<td>{short(str(value))}</td>"
    return f'<td style="text-align:left">{_text(NOTHING if value is None else value)}</td>'


def _table(name, table):
    """Data sets with measurements as tables; those without them folded away."""
    # One column for each attribute would drown the rest; they are in the CSV file.
    table = table[~table["metric"].str.startswith("edit_accuracy[")]
    measured = table.loc[table["measured"] != NOT_MEASURED, "dataset"].unique()
    shown = table[table["dataset"].isin(measured)]
    rest = table[~table["dataset"].isin(measured)]
    notes = _Footnotes(name)
    parts = []
    attackers = [a for a in table.get("attacker", []) if a != NOTHING]
    if attackers:
        listed = ", ".join(dict.fromkeys(attackers))
        parts.append(
            f'<p class="pale">The attacker harvested the faces for retraining with {_text(listed)}.</p>'
        )
    if len(shown):
        parts.append(_blocks(name, shown, notes))
    else:
        parts.append("<p>This run measured nothing for this table.</p>")
    if len(rest):
        listed = ", ".join(dict.fromkeys(rest["dataset"]))
        inside = _blocks(name, rest, notes)
        summary = f"Reported, but not measured in this run: {_text(listed)}"
        parts.append(f"<details><summary>{summary}</summary>{inside}</details>")
    parts.append(notes.html())
    parts.append(f'<p class="pale">All cells: <code>tables/{name}.csv</code></p>')
    return "".join(parts)


class _Footnotes:
    def __init__(self, table):
        self.table, self.reasons = table, {}

    def mark(self, why):
        if why == NOTHING:
            return ""
        number = self.reasons.setdefault(why, len(self.reasons))
        return f'<sup><a href="#{self.table}-{number}">{_letter(number)}</a></sup>'

    def html(self):
        items = "".join(
            f'<li id="{self.table}-{number}"><b>{_letter(number)}</b>&ensp;{_text(why)}</li>'
            for why, number in self.reasons.items()
        )
        return f'<ul class="foot">{items}</ul>' if items else ""


def _letter(number):
    rest, last = divmod(number, len(_LETTERS))
    return (_letter(rest - 1) if rest else "") + _LETTERS[last]


def _blocks(name, table, notes):
    """One HTML table, or one for each metric where it would be too wide to read."""
    layout = layout_named(name)
    _, columns, _ = layout_of(name, table)
    if len(columns) <= _MANY_COLUMNS or layout["columns"][0] != "metric":
        return _grid(name, table, notes)
    metrics = list(dict.fromkeys(column[0] for column in columns))
    grids = [_grid(name, table[table["metric"] == metric], notes) for metric in metrics]
    return f'<div class="blocks">{"".join(grids)}</div>'


def _grid(name, table, notes):
    layout = layout_named(name)
    rows, columns, cells = layout_of(name, table)
    head = []
    for level, part in enumerate(layout["columns"]):
        spans = _spans([column[: level + 1] for column in columns])
        cell = "".join(
            f'<th colspan="{span}"{_group(columns, start)}>{_heading(name, part, label[-1], table)}</th>'
            for start, span, label in spans
        )
        if level == 0:
            corner = "".join(
                f'<th class="corner" rowspan="{len(layout["columns"])}">{_text(_NAMES.get(part, part))}</th>'
                for part in layout["index"]
            )
            cell = corner + cell
        head.append(f"<tr>{cell}</tr>")
    starts = [
        {start: span for start, span, _ in _spans([row[: level + 1] for row in rows])}
        for level in range(len(layout["index"]))
    ]
    body = []
    for r, row in enumerate(rows):
        labels = "".join(
            f'<th rowspan="{starts[level][r]}">{_heading(name, layout["index"][level], label, table)}</th>'
            for level, label in enumerate(row)
            if r in starts[level]
        )
        numbers = "".join(
            f"<td{_group(columns, c)}>{_cell(cells.get((row, column)), notes)}</td>"
            for c, column in enumerate(columns)
        )
        first = ' class="first"' if r and r in starts[0] and len(layout["index"]) > 1 else ""
        body.append(f"<tr{first}>{labels}{numbers}</tr>")
    inside = f"<thead>{''.join(head)}</thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


_NAMES = {"subject": "model", "method": "defence"}


def _heading(name, part, label, table):
    """A heading; a metric also gets its direction, and what measured it where that is another one."""
    if part != "metric":
        return _text(label)
    arrow = _ARROWS.get(direction(name, label), "")
    measured_by = table.loc[table["metric"] == label, "measured_by"]
    others = [other for other in dict.fromkeys(measured_by) if other not in (label, NOTHING)]
    ours = f'<span class="sd">ours: {_text(", ".join(others))}</span>' if others else ""
    return f"{_text(label)} {arrow}".strip() + ours


def _group(columns, c):
    """Columns of one heading are set off from the next."""
    return ' class="group"' if c == 0 or columns[c][0] != columns[c - 1][0] else ""


def _spans(labels):
    """(start, length, label) of runs of equal labels."""
    spans = []
    for i, label in enumerate(labels):
        if spans and spans[-1][2] == label:
            spans[-1][1] += 1
        else:
            spans.append([i, 1, label])
    return spans


def _cell(cell, notes):
    if cell is None:
        return '<span class="none">·</span>'
    mark = notes.mark(cell["why"])
    reported = "–" if cell["reported"] == NOT_REPORTED else cell["reported"]
    missing = cell["measured"] == NOT_MEASURED
    measured = "–" if missing else short(cell["measured"])
    spread = "" if cell["sd"] == NOTHING else f'<span class="sd">± {_text(short(cell["sd"], 2))}</span>'
    style = "measured none" if missing else "measured"
    return (
        f'<span class="reported">{_text(reported)}</span>'
        f'<span class="{style}">{_text(measured)}{mark}</span>{spread}'
    )


def _figure(heading, caption, path):
    try:
        data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    except OSError as error:
        raise HoldfastError(
            f"the report lacks the figure {path}", found=error.strerror, expected="a PNG file"
        ) from error
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{_text(heading)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _metrics(records):
    """Name, unit and definition of every metric, as the records have them."""
    found = dict.fromkeys(
        (record["metric"], record["unit"] or NOTHING, record["definition"])
        for record in sorted(records, key=lambda record: record["metric"])
    )
    if not found:
        return "<p>No records were given to the report.</p>"
    head = "<tr><th>metric</th><th>unit</th><th>definition</th></tr>"
    body = "".join(
        f"<tr><th>{_text(name)}</th><td>{_text(unit)}</td><td>{_text(definition)}</td></tr>"
        for name, unit, definition in found
    )
    return (
        f'<div class="scroll"><table class="facts"><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    )


def _provenance(records):
    """What the provenance of all records says, each different answer once."""
    told = [record["provenance"] for record in records]
    if not told:
        return "<p>No records were given to the report.</p>"

    def answers(pick):
        return ", ".join(sorted({str(pick(entry)) for entry in told}))

    def commit(entry):
        return entry["git_commit"] + (" with uncommitted changes" if entry["git_dirty"] else "")

    packages = list(dict.fromkeys(name for entry in told for name in entry["versions"]))
    missing = sum(record["value"] is None for record in records)
    times = sorted(entry["written_at"] for entry in told)
    rows = [
        ("Measurements", f"{len(told)} records, {missing} of them without a value (each with its reason)"),
        ("Code (git commit)", answers(commit)),
        ("Holdfast", answers(lambda e: e["holdfast"])),
        ("Config (sha256)", answers(lambda e: e["config_sha256"])),
        ("Device", answers(lambda e: e["device"])),
        ("Processor", answers(lambda e: f"{e['platform']['cpu']}, {e['platform']['cores']} cores")),
        ("Measured between", f"{times[0]} and {times[-1]}"),
    ]
    rows += [(name, answers(lambda e, name=name: e["versions"].get(name, "absent"))) for name in packages]
    body = "".join(f"<tr><th>{_text(a)}</th><td>{_text(b)}</td></tr>" for a, b in rows)
    return f'<div class="scroll"><table class="facts">{body}</table></div>'
