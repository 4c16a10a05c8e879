"""Copies of the pipeline in folders of their own, and Snakemake run in them as a user runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["Snakefile", "config.yaml", "workflow", "profiles", "envs"]


class Pipeline:
    """A copy of the pipeline in `folder`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, self.folder / part, ignore=ignored)
            else:
                shutil.copy(source, self.folder / part)

    @property
    def results(self):
        return self.folder / "results/smoke"

    def command(self, *arguments):
        return [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/smoke", *arguments]

    def environment(self):
        # An installed copy of the library must not stand in for the one in the folder.
        return {**os.environ, "PYTHONPATH": str(self.folder / "workflow")}

    def run(self, *arguments, timeout=2400):
        """Run Snakemake with the smoke profile; returns the finished process with its output."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *arguments):
        """Start Snakemake in a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def tables(self):
        """{file name: bytes} of all tables."""
        return {path.name: path.read_bytes() for path in sorted((self.results / "tables").glob("*.csv"))}


@pytest.fixture(scope="session")
def pipeline_copy(tmp_path_factory):
    """A function that makes a fresh copy."""
    return lambda name: Pipeline(tmp_path_factory.mktemp("pipelines") / name)


@pytest.fixture(scope="session")
def smoke(pipeline_copy):
    """A copy in which the whole DAG ran with the smoke preset."""
    pipeline = pipeline_copy("first")
    finished = pipeline.run()
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
    return pipeline
