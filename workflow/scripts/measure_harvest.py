"""Rule measure_harvest."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.harvest import measure_harvest

    given, names = snakemake.input, snakemake.wildcards
    measure_harvest(
        snakemake.config,
        names.defence,
        int(names.seed),
        Path(given.protected) / "index.csv",
        given.faces,
        names.detector,
        list(given.weights),
        list(given.boxes),
        snakemake.output.records,
    )
