"""Rule import_deepfake."""

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.pretrain import import_deepfake

    out = snakemake.output
    import_deepfake(
        snakemake.config,
        snakemake.wildcards.model,
        snakemake.input.index,
        out.weights,
        out.samples,
    )
