"""Rule measure_images."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.measure import measure_images

    measure_images(
        snakemake.config,
        snakemake.wildcards.dataset,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        Path(snakemake.input.protected) / "index.csv",
        snakemake.input.faces,
        snakemake.output.records,
    )
