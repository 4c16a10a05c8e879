"""Rule tables."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.publish import tables

    tables(
        snakemake.config,
        snakemake.input.records,
        snakemake.input.reported,
        Path(snakemake.output[0]).parent,
    )
