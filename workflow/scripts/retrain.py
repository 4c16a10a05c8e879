"""Rule retrain."""

from holdfast.jobs import job

with job(snakemake.log[0], snakemake.config["threads"]):
    from holdfast.stages.retrain import retrain

    out = snakemake.output
    retrain(
        snakemake.config,
        snakemake.wildcards.model,
        snakemake.wildcards.defence,
        int(snakemake.wildcards.seed),
        snakemake.input.pretrained,
        snakemake.input.harvest,
        snakemake.input.faces,
        out.weights,
        out.log,
        out.curves,
        out.samples,
    )
