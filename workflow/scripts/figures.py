"""Rule figures."""

from pathlib import Path

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.publish import figures

    config, given = snakemake.config, snakemake.input
    figures(
        config,
        dict(zip(active(config, "defences"), given.protected)),
        given.faces,
        given.classifier,
        dict(zip(active(config, "deepfakes"), given.deepfakes)),
        dict(zip(active(config, "detectors"), given.detectors)),
        Path(snakemake.output[0]).parent,
    )
