"""Rule measure_health."""

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.pretrain import measure_health

    measure_health(
        snakemake.config,
        snakemake.wildcards.model,
        snakemake.input.weights,
        snakemake.input.index,
        snakemake.input.classifier,
        snakemake.output.records,
    )
