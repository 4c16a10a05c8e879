"""Rule train_classifier."""

from holdfast.jobs import job

with job(snakemake.log[0], snakemake.config["threads"]):
    from holdfast.stages.pretrain import train_classifier

    out = snakemake.output
    train_classifier(snakemake.config, snakemake.input.index, out.weights, out.log, out.curves, out.records)
