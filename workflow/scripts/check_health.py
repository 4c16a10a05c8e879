"""Rule check_health."""

from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.pretrain import check_health

    check_health(snakemake.config, snakemake.wildcards.model, snakemake.input.records, snakemake.output.flag)
