"""Rule measure_outputs."""

from pathlib import Path

from holdfast.config import active, attackers_models
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.measure import measure_outputs

    config, given, names = snakemake.config, snakemake.input, snakemake.wildcards
    models = active(config, "deepfakes") if names.state == "original" else attackers_models(config)
    measure_outputs(
        config,
        names.dataset,
        names.defence,
        int(names.seed),
        names.state,
        Path(given.protected) / "index.csv",
        given.faces,
        given.classifier,
        dict(zip(models, given.models)),
        snakemake.output.records,
    )
