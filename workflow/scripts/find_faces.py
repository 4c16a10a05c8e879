"""Rule find_faces."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.harvest import find_faces

    given = snakemake.input
    find_faces(
        snakemake.config,
        Path(given.protected) / "index.csv",
        snakemake.wildcards.detector,
        given.weights,
        snakemake.output.boxes,
    )
