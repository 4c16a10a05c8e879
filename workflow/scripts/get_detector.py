"""Rule get_detector."""

from pathlib import Path

from holdfast.jobs import job

with job(snakemake.log[0], snakemake.config["threads"]):
    from holdfast.stages.pretrain import get_detector

    get_detector(
        snakemake.config,
        snakemake.wildcards.detector,
        Path(snakemake.input.images).parent,
        snakemake.output.weights,
        snakemake.output.records,
    )
