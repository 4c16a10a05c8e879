"""Rule first_stage."""

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0], snakemake.config["threads"]):
    from holdfast.stages.perturb import first_stage

    first_stage(
        snakemake.config,
        snakemake.wildcards.stage,
        int(snakemake.wildcards.seed),
        snakemake.input.index,
        dict(zip(active(snakemake.config, "deepfakes"), snakemake.input.deepfakes)),
        snakemake.output[0],
    )
