"""Rule measure_detection."""

from pathlib import Path

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.measure import measure_detection

    config = snakemake.config
    measure_detection(
        config,
        snakemake.wildcards.dataset,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        Path(snakemake.input.protected) / "index.csv",
        snakemake.input.faces,
        dict(zip(active(config, "detectors"), snakemake.input.detectors)),
        snakemake.output.records,
    )
