"""The command line: what `holdfast list` prints, for people and for programs, and the tables it writes."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import cli, modules
from holdfast.errors import HoldfastError

ROOT = Path(__file__).resolve().parent.parent
# The published networks at 256 px.
GENERATORS = {"stargan": 8_430_528, "attgan": 43_352_707, "attentiongan": 8_433_664, "hisd": 19_043_939}
DISCRIMINATORS = {"stargan": 44_884_928, "attgan": 145_382_286, "hisd": 12_500_042}
FACTS = {
    "deepfakes": ["name", "title", "paper", "licence", "image_size", "parameters", "attributes"],
    "detectors": ["name", "title", "paper", "licence", "parameters"],
    "defences": ["name", "title", "form", "description"],
    "datasets": ["kind", "description"],
    "metrics": ["name", "unit", "better_defence", "better_by_pair", "definition"],
}


def python(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, text=True, timeout=120, check=False, **options
    )


@pytest.fixture
def holdfast(capsys, monkeypatch):
    """holdfast(*arguments, columns=100) -> (exit code, stdout, stderr)."""

    def run(*arguments, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        code = cli.main(list(arguments))
        return code, *capsys.readouterr()

    return run


def test_as_a_program_with_the_published_counts():
    ran = python("-m", "holdfast", "list", "deepfakes", "--json", capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(ran.stdout)}
    assert {name: rows[name]["parameters"]["generator"] for name in GENERATORS} == GENERATORS
    assert {name: rows[name]["parameters"]["discriminator"] for name in DISCRIMINATORS} == DISCRIMINATORS
    for row in rows.values():
        assert row["image_size"] == 256 and row["title"] and row["paper"] and row["licence"]
        assert 0 not in row["parameters"].values()
    assert rows["stargan"]["attributes"] == ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]
    assert len(rows["attgan"]["attributes"]) == 13


@pytest.mark.parametrize("section", FACTS)
def test_json_has_every_registered_thing_with_all_its_facts(holdfast, section):
    code, out, err = holdfast("list", section, "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [row[FACTS[section][0]] for row in rows] == sorted(modules.registered(section))
    for row in rows:
        assert list(row) == FACTS[section]
        assert all(row[key] for key in ("title", "description", "definition") if key in row)


def test_every_section_of_the_config_can_be_listed():
    assert set(cli.LISTS) == {*modules.SECTIONS, modules.METRICS}


def test_a_detectors_parameters():
    (row,) = cli.listed("detectors", ["retinaface"])
    assert (row["title"], row["parameters"]) == ("RetinaFace", 426_608)


def test_metrics_as_the_registry_has_them(holdfast):
    from holdfast.metrics import METRICS

    for row in cli.listed("metrics"):
        metric = METRICS[row["name"]]
        assert (row["unit"], row["definition"]) == (metric.unit, metric.definition)
        assert (row["better_defence"], row["better_by_pair"]) == (
            metric.better_defence,
            dict(metric.better_by_pair),
        )
    _, out, _ = holdfast("list", "metrics", "l2_mask", "psnr")
    header, *lines = out.splitlines()
    directions = [line[header.index("BETTER DEFENCE") : header.index("DEFINITION")].split() for line in lines]
    assert [line for line in directions if line] == [
        ["up"],
        ["outputs", "down"],
        ["protected", "up"],
        ["model", "down"],
    ]


def test_names_restrict_a_section_in_their_order(holdfast):
    assert [row["name"] for row in cli.listed("defences", ["tsdf", "cmua"])] == ["tsdf", "cmua"]
    code, out, _ = holdfast("list", "defences", "random")
    assert code == 0 and "Random" in out and "CMUA" not in out


def test_the_form_of_a_defence():
    forms = {row["name"]: row["form"] for row in cli.listed("defences")}
    assert (forms["tsdf"], forms["ssod"]) == ("universal", "per image")
    assert forms["tsdf_hidden"] == "per image, from a universal one"


def test_a_model_for_people(holdfast):
    _, out, _ = holdfast("list", "deepfakes", "stargan", columns=80)
    lines = out.splitlines()
    assert lines[0] == "stargan"
    assert "  parameters at 256 px  generator       8,430,528" in lines
    assert " " * 24 + "discriminator  44,884,928" in lines


@pytest.mark.parametrize("columns", [50, 80, 100, 300])
@pytest.mark.parametrize("section", FACTS)
def test_lines_fit_the_terminal_and_lose_nothing(holdfast, section, columns):
    _, out, _ = holdfast("list", section, columns=columns)
    assert max(map(len, out.splitlines())) <= min(columns, 110)
    assert all(line == line.rstrip() for line in out.splitlines())
    for row in cli.listed(section):
        for key in ("name", "kind", "title", "paper", "licence", "description", "definition"):
            assert set((row.get(key) or "").split()) <= set(out.split())


WORD = st.text("abcdefgh", min_size=1, max_size=9)
TEXT = st.lists(WORD, min_size=1, max_size=12).map(" ".join)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"name": WORD.map(lambda word: [word]), "a": st.lists(TEXT), "b": st.lists(TEXT)}
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(20, 150),
)
def test_any_rows_fit_the_width_with_all_their_words(rows, width):
    out = cli.laid_out(rows, width)
    assert max(map(len, out.splitlines())) <= width
    wanted = [word for row in rows for cell in row.values() for text in cell for word in text.split()]
    found = out.split()
    for word in set(wanted):
        assert found.count(word) >= wanted.count(word)


def test_nothing_registered_prints_nothing():
    assert cli.laid_out([], 80) == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("Over\ntwo lines. Then.", "Over two lines."),
        ("X: H. Huang et al. in CVPR, Eq. 3. More.", "X: H. Huang et al. in CVPR, Eq. 3."),
        ('T: "A Title". This file.', 'T: "A Title".'),
        ("Epsilon is 0.05 here. So.", "Epsilon is 0.05 here."),
        ("No end\n\nAnother paragraph.", "No end"),
        ("", ""),
    ],
)
def test_first_sentence(text, sentence):
    assert cli.first_sentence(text) == sentence


@pytest.mark.parametrize(
    ("arguments", "wrong", "repair"),
    [
        (["deepfake"], "no section 'deepfake'", "`holdfast list deepfakes`"),
        (["deepfakes", "stargna"], "nobody registered 'stargna'", "`holdfast list deepfakes stargan`"),
        (["deepfakes", "StarGAN"], "nobody registered 'StarGAN'", "`holdfast list deepfakes stargan`"),
        (["metrics", "psnr", "qqqqqq"], "nobody registered 'qqqqqq'", "`holdfast list metrics`"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest(holdfast, arguments, wrong, repair):
    code, out, err = holdfast("list", *arguments, "--json")
    assert (code, out) == (1, "")
    assert wrong in err and repair in err and "Traceback" not in err
    with pytest.raises(HoldfastError):
        cli.listed(arguments[0], arguments[1:])


def test_what_needs_no_torch_does_not_wait_for_it():
    ran = python(
        "-c",
        "import sys; from holdfast.cli import main; codes = [main(['list', 'datasets', '--json']), "
        "main(['list', 'metrics', 'nothing'])]; print(codes, 'torch' in sys.modules, file=sys.stderr)",
        capture_output=True,
    )
    assert ran.stderr.splitlines()[-1] == "[0, 1] False"
    assert json.loads(ran.stdout)


@pytest.mark.parametrize("arguments", [["list", "datasets"], ["list", "datasets", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = python("-m", "holdfast", *arguments, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_console_script_is_this_command_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["holdfast"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


LAB = ROOT / "results/lab"
FOUR_MODELS = LAB / "benchmarks/four_models"  # which no run writes over


@pytest.mark.parametrize("folder", [LAB, FOUR_MODELS], ids=["lab", "four_models"])
def test_the_committed_tables_are_those_of_the_committed_records(holdfast, tmp_path, folder):
    if folder == LAB and (LAB / "logs").exists():
        pytest.skip("`make lab` has written over the committed results")
    committed = {path.stem: path.read_bytes() for path in (folder / "tables").iterdir()}
    given = ["--config", str(folder / "config.yaml"), "--records", str(folder / "records")]
    code, out, err = holdfast("tables", *given, "--into", str(tmp_path), "--only", *committed)
    assert (code, err) == (0, "")
    assert {path.stem: path.read_bytes() for path in map(Path, out.splitlines())} == committed


def test_tables_of_a_part_of_the_records_say_what_is_missing(holdfast, tmp_path):
    for file in ("images/celeba.tsdf.0.jsonl", "outputs/celeba.tsdf.0.original.jsonl"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_bytes((FOUR_MODELS / "records" / file).read_bytes())
    config = ["--config", *(str(ROOT / name) for name in ("config.yaml", "workflow/presets/lab.yaml"))]
    given = [*config, "--records", str(tmp_path), "--into", str(tmp_path / "tables")]
    code, out, err = holdfast("tables", *given, "--only", "table_VI", "table_I")
    assert (code, err) == (0, "") and len(out.splitlines()) == 2
    table = pd.read_csv(tmp_path / "tables/table_VI.csv", dtype=str, keep_default_na=False)
    cell = table.query("dataset == 'CelebA' and method == 'TSDF' and metric == 'psnr'").squeeze()
    assert cell["seeds"] == "0" and cell["measured"] != "not measured"
    others = table.query("dataset == 'CelebA' and method == 'FOUND'")
    assert set(others["measured"]) == {"not measured"} and set(others["why"]) == {
        "the run has no record of it"
    }


@pytest.mark.parametrize(
    ("arguments", "wrong", "repair"),
    [
        (["--only", "table_IIII"], "no table table_IIII", "write table_III"),
        (["--only", "something else"], "no table something else", "leave --only out"),
        (["--records", "nowhere"], "no records in nowhere", "the folder `records`"),
        (["--config", "nowhere.yaml"], "cannot read the config nowhere.yaml", ""),
    ],
)
def test_tables_of_nothing_are_refused(holdfast, tmp_path, monkeypatch, arguments, wrong, repair):
    monkeypatch.chdir(tmp_path)
    config = [] if "--config" in arguments else ["--config", str(ROOT / "config.yaml")]
    code, out, err = holdfast("tables", *config, *arguments)
    assert (code, out) == (1, "") and wrong in err and repair in err
    assert not list(tmp_path.iterdir())
