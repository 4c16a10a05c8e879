"""Rule perturb."""

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0], snakemake.config["threads"]):
    from holdfast.stages.perturb import perturb

    config = snakemake.config
    perturb(
        config,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        snakemake.input.index,
        dict(zip(active(config, "deepfakes"), snakemake.input.deepfakes)),
        dict(zip(active(config, "detectors"), snakemake.input.detectors)),
        snakemake.output.perturbation,
        snakemake.output.about,
        next(iter(snakemake.input.first), None),
    )
