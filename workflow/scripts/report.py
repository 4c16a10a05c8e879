"""Rule report."""

from pathlib import Path

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.publish import report

    config, given = snakemake.config, snakemake.input
    report(
        config,
        given.records,
        Path(given.tables[0]).parent,
        Path(given.figures[0]).parent,
        dict(zip(active(config, "deepfakes"), given.samples)),
        snakemake.output.report,
        snakemake.output.config,
    )
