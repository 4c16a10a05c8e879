"""Rule prepare_faces."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.data import prepare_faces

    prepare_faces(snakemake.config, snakemake.wildcards.dataset, Path(snakemake.output.index).parent)
