import pytest

from holdfast.errors import HoldfastError
from holdfast.papers.reported import COLUMNS, load_reported

HEADER = ",".join(COLUMNS)
ROW = "tsdf,I,CelebA,StarGAN,CMUA,l2_mask,,0.21,up,"


def test_the_papers_cells_are_whole():
    cells = load_reported()
    assert len(cells) == 700
    assert cells["value"].dtype == float
    of_tables = cells[cells["paper"] == "tsdf"]["table"].value_counts()
    # As printed: 5 metrics x 3 methods x 5 rows x 3 data sets; 5 methods x 9; 2 methods x 5 x 10; and so on.
    assert dict(of_tables[["I", "II", "III", "IV", "V", "VI"]]) == {
        "I": 225,
        "II": 45,
        "III": 100,
        "IV": 12,
        "V": 8,
        "VI": 18,
    }
    cell = cells[
        (cells["table"] == "III") & (cells["subject"] == "AttGAN") & (cells["method"] == "CMUA")
    ].set_index(["metric", "state"])["value"]
    assert cell["sr_mask", "original"] == 0.8701 and cell["fid", "retrained"] == 113.3


@pytest.mark.parametrize(
    ("lines", "row", "word"),
    [
        ([HEADER, ROW, ROW.replace("0.21", "zero")], 3, "value"),
        ([HEADER, ROW, ROW.replace("0.21", "nan").replace("CMUA", "TSDF")], 3, "value"),
        ([HEADER, ROW, ROW.replace("0.21", "0.3")], 3, "row 2"),
        ([HEADER, ROW.replace("up", "sideways")], 2, "better_defence"),
        ([HEADER, ROW.replace("StarGAN", " ")], 2, "subject"),
        ([HEADER, ROW + ",more"], 2, "number of cells"),
        ([HEADER.replace("metric", "measure"), ROW], 1, "columns"),
        ([], 1, "columns"),
    ],
)
def test_errors_name_the_row(tmp_path, lines, row, word):
    path = tmp_path / "reported.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(HoldfastError, match=f"row {row}") as caught:
        load_reported(path)
    assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HoldfastError, match="nowhere.csv"):
        load_reported(tmp_path / "nowhere.csv")
