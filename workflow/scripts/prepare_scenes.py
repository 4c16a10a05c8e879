"""Rule prepare_scenes."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.data import prepare_scenes

    faces = snakemake.input.faces
    prepare_scenes(snakemake.config, Path(snakemake.output.images).parent, faces[0] if faces else None)
