"""Rule render_scenes."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.data import render_scenes

    render_scenes(snakemake.config, Path(snakemake.output.images).parent)
