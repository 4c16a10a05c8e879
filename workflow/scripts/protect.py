"""Rule protect."""

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.protect import protect

    config, given = snakemake.config, snakemake.input
    protect(
        config,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        snakemake.wildcards.split,
        given.faces,
        given.training,
        given.perturbation,
        given.about,
        dict(zip(active(config, "deepfakes"), given.deepfakes)),
        dict(zip(active(config, "detectors"), given.detectors)),
        snakemake.output.folder,
    )
