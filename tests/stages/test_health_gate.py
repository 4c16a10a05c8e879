"""The gate before a deepfake model is attacked: stages/pretrain.py's check_health."""

import time

import pytest

from holdfast.errors import HoldfastError
from holdfast.metrics import METRICS
from holdfast.metrics.metric import result
from holdfast.records import provenance, record_of, write_records
from holdfast.stages.pretrain import check_health

ACCURACIES = {"Bangs": 0.75, "Male": 0.7, "Young": 0.2, "Bald": None}


@pytest.fixture
def gate(tmp_path):
    """Function (ssim, weights, health's settings) that asks at the gate and returns the flag's path."""

    def ask(ssim=0.65, weights="train", **health):
        rows = [
            (METRICS["ssim"], {}, ssim),
            *((METRICS["edit_accuracy"], {"attribute": name}, value) for name, value in ACCURACIES.items()),
        ]
        records = tmp_path / "records.jsonl"
        write_records(records, [_record(*row) for row in rows])
        health = {"edit_accuracy": 0.7, "attributes": [], "least": None, "ssim": 0.6} | health
        flag = tmp_path / "healthy.txt"
        config = {"image_size": 64, "deepfakes": {"m": {"weights": weights, "health": health}}}
        check_health(config, "m", records, flag)
        return flag

    ask.flag = tmp_path / "healthy.txt"
    return ask


def _record(metric, subject, value):
    return record_of(
        metric,
        result(value, 0 if value is None else 8, why="no image's label is changed"),
        subject={"kind": "model", "dataset": "d", "model": "m", "state": "healthy", **subject},
        provenance=provenance(config_sha256="0" * 64, seeds={}, inputs={}, started=time.monotonic()),
    )


@pytest.mark.parametrize(
    "health",
    [
        {"attributes": ["Bangs", "Male"]},
        {"attributes": ["Bangs", "Male", "Young", "Bald"], "least": 2},
        {"attributes": ["Young"], "least": 0},
        {"edit_accuracy": 0.2, "attributes": ["Bangs", "Male", "Young"]},
    ],
)
def test_a_healthy_model_passes_and_its_figures_are_written(gate, health):
    assert "Bangs 0.750" in gate(**health).read_text()


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ({"attributes": ["Bangs", "Young"]}, "0.7 of all of Bangs, Young"),
        ({"attributes": ["Bangs", "Bald"]}, "of all of Bangs, Bald"),
        ({"attributes": ["Bangs", "Male", "Young", "Bald"], "least": 3}, "0.7 of 3 of Bangs, Male"),
        ({"ssim": 0.5}, "ssim >= 0.6"),
    ],
)
def test_an_unhealthy_model_stops_the_run_with_all_figures(gate, health, words):
    with pytest.raises(HoldfastError, match="m is not healthy") as caught:
        gate(**health)
    assert words in str(caught.value) and "Bald none" in str(caught.value)
    assert not gate.flag.exists()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("train", "train it better (deepfakes.m"),
        ("a.pth", "order of its attributes"),
        ([{"path": "a.pth"}], "64 px, RGB"),
    ],
)
def test_what_to_do_fits_where_the_weights_come_from(gate, weights, words):
    with pytest.raises(HoldfastError) as caught:
        gate(0.5, weights)
    assert words in caught.value.repair and "records.jsonl" in caught.value.repair
    assert ("train it" in caught.value.repair) == (weights == "train")
