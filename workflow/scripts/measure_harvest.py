"""Rule measure_harvest."""

from pathlib import Path

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.harvest import measure_harvest

    given, names = snakemake.input, snakemake.wildcards
    detectors = active(snakemake.config, "detectors")
    measure_harvest(
        snakemake.config,
        names.defence,
        int(names.seed),
        Path(given.protected) / "index.csv",
        given.faces,
        dict(zip(detectors, given.weights)),
        dict(zip(detectors, given.boxes)),
        snakemake.output.records,
    )
