"""Rule harvest."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.harvest import harvest

    given = snakemake.input
    harvest(
        snakemake.config,
        snakemake.wildcards.defence,
        Path(given.protected) / "index.csv",
        given.faces,
        list(given.boxes),
        Path(snakemake.output.index).parent,
    )
