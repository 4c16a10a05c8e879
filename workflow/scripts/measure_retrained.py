"""Rule measure_retrained."""

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.retrain import measure_retrained

    measure_retrained(
        snakemake.config,
        snakemake.wildcards.model,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        snakemake.input.weights,
        snakemake.input.index,
        snakemake.input.classifier,
        snakemake.output.records,
    )
