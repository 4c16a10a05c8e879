"""Rule harvest."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.retrain import harvest

    harvest(
        snakemake.config,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        Path(snakemake.input.protected) / "index.csv",
        snakemake.input.faces,
        snakemake.wildcards.detector,
        list(snakemake.input.detectors),
        Path(snakemake.output.index).parent,
        snakemake.output.records,
    )
