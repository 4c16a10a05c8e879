import html.parser
import re

import numpy as np
import pytest
from paper_records import a_run, plan, record
from PIL import Image

from holdfast.errors import HoldfastError
from holdfast.papers.report import write_report
from holdfast.papers.reported import load_reported
from holdfast.papers.tables import build_tables
from holdfast.stages.publish import health_rows
from holdfast.stages.retrain import NOT_RETRAINED

_VOID = {"meta", "img", "br"}


class _Reader(html.parser.HTMLParser):
    """Text, links, ids and sources; refuses tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.ids, self.links, self.sources = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def written(tmp_path):
    known = plan(preset="<b>bold</b>")
    known["datasets"]["lfw"]["skip"] = "a <script> & more"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "figure.png")
    tables = build_tables(a_run(), known, load_reported())
    figures = [("Fig. 5 <i>", 'a "caption" & more', tmp_path / "figure.png")]
    health = [{"model": "StarGAN", "value": 0.123456, "passed": False}, {"model": "<u>", "value": None}]
    write_report(tmp_path / "report.html", known, tables, figures, health, ["a note < all"], a_run())
    text = (tmp_path / "report.html").read_text()
    reader = _Reader()
    reader.feed(text)
    assert not reader.open
    return text, reader


def test_the_file_needs_nothing_else(written):
    text, reader = written
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert len(reader.sources) == 1
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)


def test_every_link_leads_somewhere(written):
    _, reader = written
    assert len(set(reader.ids)) == len(reader.ids)
    assert len(reader.links) > 20
    for link in reader.links:
        assert link.startswith("#") and link[1:] in reader.ids, link


def test_everything_is_escaped(written):
    text, reader = written
    shown = "".join(reader.text)
    for part in (
        "<b>bold</b>",
        "a <script> & more",
        "Fig. 5 <i>",
        'a "caption" & more',
        "<u>",
        "a note < all",
    ):
        assert part in shown
    assert "a <fast> one" in shown
    assert "<b>bold" not in text and "<u>" not in text


def test_numbers_reasons_and_provenance_are_there(written):
    _, reader = written
    shown = " ".join(reader.text)
    for part in (
        "305.05",
        "0.1235",
        "mean over StarGAN and AttGAN",
        "FF++O has no source in this run",
        "a" * 40,
        "b" * 64,
        "2.13.0",
        "2026-01-02T03:04:05Z",
    ):
        assert part in shown, part


def test_a_run_without_anything_is_a_report_too(tmp_path):
    write_report(tmp_path / "r.html", plan(), build_tables([], plan(), load_reported()), [], [], [])
    text = (tmp_path / "r.html").read_text()
    assert "This run measured nothing for this table." in text
    _Reader().feed(text)


def test_every_metric_has_its_definition(tmp_path):
    records = [record("psnr", 33.0, kind="images") | {"unit": "dB", "definition": "a <b>"}] * 2
    write_report(tmp_path / "r.html", plan(), {}, [], [], [], [*records, *a_run()])
    text = (tmp_path / "r.html").read_text()
    assert text.count("<th>psnr</th><td>dB</td><td>a &lt;b&gt;</td>") == 1
    assert all(f"<th>{found['metric']}</th>" in text for found in a_run())


def test_a_missing_figure_is_named(tmp_path):
    with pytest.raises(HoldfastError, match="nowhere.png"):
        write_report(tmp_path / "r.html", plan(), {}, [("a", "b", tmp_path / "nowhere.png")], [], [])
    assert not list(tmp_path.iterdir())


def test_it_says_where_the_attacker_stops_short(tmp_path):
    attacker = {"detector": "retinaface", "models": ["stargan"], "defences": ["none", "tsdf"], "seeds": [1]}
    whole = {"seeds": [0, 1], "defences": list(plan()["defences"])}
    for chosen, said in ((attacker, True), (attacker | whole, False)):
        known = plan(attacker=chosen)
        tables = build_tables(a_run(), known, load_reported())
        write_report(tmp_path / "report.html", known, tables, [], [], [], a_run())
        text = (tmp_path / "report.html").read_text()
        assert "<th>The attacker retrains</th><td>StarGAN</td>" in text
        assert ("<th>The attacker works on seeds</th><td>1</td>" in text) == said
        assert ("<th>The attacker collects what is protected by</th><td>Original, TSDF</td>" in text) == said


def test_health_has_the_models_first_and_their_bars_in_front():
    about = {"kind": "model", "model": "stargan", "state": "healthy"}
    records = [
        record("ap", 0.9, kind="detector", detector="s3fd", state="trained"),
        record("psnr", 20.0, **about),
        record("edit_accuracy", 0.8, attribute="mean", **about),
        record("ssim", 0.7, **about),
    ]
    assert [list(row.items()) for row in health_rows(records, plan())] == [
        [("model", "StarGAN"), ("state", "healthy"), ("ssim", 0.7), ("edit_accuracy", 0.8), ("psnr", 20.0)],
        [("detector", "S3FD"), ("state", "trained"), ("ap", 0.9)],
    ]


def test_a_model_that_was_not_retrained_is_not_called_so():
    def of_model(remark):
        about = {"model": "stargan", "state": "retrained", "defence": "tsdf", "seed": 0}
        found = record("ssim", 0.7, kind="model", dataset="celeba", **about)
        return found | {"extra": {"remark": remark}}

    (row,) = health_rows([of_model("retrained for 2 steps")], plan())
    assert row == {"model": "StarGAN", "state": "retrained on TSDF, seed 0", "ssim": 0.7}
    (row,) = health_rows([of_model(f"{NOT_RETRAINED}, the weights are others")], plan())
    assert row["state"] == "retrained on TSDF, seed 0 (not retrained)"
