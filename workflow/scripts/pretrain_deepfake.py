"""Rule pretrain_deepfake."""

from holdfast.jobs import job

with job(snakemake.log[0], snakemake.config["threads"]):
    from holdfast.stages.pretrain import pretrain_deepfake

    out = snakemake.output
    pretrain_deepfake(
        snakemake.config,
        snakemake.wildcards.model,
        snakemake.input.index,
        out.weights,
        out.log,
        out.curves,
        out.samples,
    )
