"""Rule study."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.publish import tables

    table = Path(snakemake.output[0])
    tables(
        snakemake.config,
        snakemake.input.records,
        snakemake.input.reported,
        table.parent,
        [table.stem],
    )
