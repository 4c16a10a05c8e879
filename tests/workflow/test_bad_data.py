"""Bad data through the workflow: a clear error, an exit code, and nothing half-written."""

import numpy as np
import pytest
import yaml
from PIL import Image

NAMES = ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]


def celeba_copy(folder, count=12):
    """A folder in CelebA's official layout, with drawn images of 178x218."""
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0)
    rows, splits = [], []
    for number in range(1, count + 1):
        name = f"{number:06d}.jpg"
        Image.fromarray(noise.integers(0, 255, (218, 178, 3), np.uint8)).save(images / name)
        rows.append(" ".join([name, *("1" if bit else "-1" for bit in noise.integers(0, 2, len(NAMES)))]))
        splits.append(f"{name} {min(2, number * 3 // (count + 1))}")
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(NAMES), *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")
    return folder


@pytest.fixture
def with_celeba(pipeline_copy, tmp_path):
    """A pipeline whose training set is a CelebA folder, and that folder."""
    source = celeba_copy(tmp_path / "celeba")
    pipeline = pipeline_copy("celeba")
    preset = pipeline.folder / "workflow/presets/smoke.yaml"
    config = yaml.safe_load(preset.read_text())
    config["datasets"]["celeba"] = {"skip": None}
    preset.write_text(yaml.safe_dump(config))
    (pipeline.folder / "paths.yaml").write_text(
        yaml.safe_dump({"datasets": {"celeba": {"source": str(source)}}})
    )
    return pipeline, source


def prepare(pipeline):
    return pipeline.run("results/smoke/data/celeba/index.csv")


def assert_refused(pipeline, finished, *words):
    told = finished.stdout + finished.stderr
    assert finished.returncode != 0
    for word in words:
        assert word in told, told[-3000:]
    data = pipeline.results / "data"
    left = [path for path in data.rglob("*") if path.is_file()] if data.exists() else []
    assert not left, left


def test_a_whole_copy_is_prepared(with_celeba):
    pipeline, _ = with_celeba
    finished = prepare(pipeline)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (pipeline.results / "data/celeba/report.json").exists()


def test_truncated_jpeg(with_celeba):
    pipeline, source = with_celeba
    broken = source / "img_align_celeba/000003.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    assert_refused(pipeline, prepare(pipeline), "000003.jpg", "problem_limit")


def test_attribute_file_with_a_missing_row(with_celeba):
    pipeline, source = with_celeba
    attributes = source / "list_attr_celeba.txt"
    lines = [line for line in attributes.read_text().splitlines() if not line.startswith("000004.jpg")]
    attributes.write_text("\n".join(lines) + "\n")
    assert_refused(pipeline, prepare(pipeline), "000004.jpg")


def test_folder_without_the_attribute_file(with_celeba):
    pipeline, source = with_celeba
    (source / "list_attr_celeba.txt").unlink()
    assert_refused(pipeline, prepare(pipeline), "list_attr_celeba.txt")


@pytest.mark.parametrize(
    "text, words",
    [("# nothing yet\n", None), ("datasets: {celeba\n", "cannot read the config paths.yaml")],
)
def test_where_paths_are_told(pipeline_copy, text, words):
    pipeline = pipeline_copy("paths")
    (pipeline.folder / "paths.yaml").write_text(text)
    finished = pipeline.run("--dry-run", "--quiet")
    assert (finished.returncode == 0) == (words is None), finished.stderr[-3000:]
    assert words is None or words in finished.stdout + finished.stderr
