"""Rule measure_outputs."""

from pathlib import Path

from holdfast.config import active
from holdfast.jobs import job

with job(snakemake.log[0]):
    from holdfast.stages.measure import measure_outputs

    config, given, names = snakemake.config, snakemake.input, snakemake.wildcards
    measure_outputs(
        config,
        names.dataset,
        names.defence,
        int(names.seed),
        names.state,
        Path(given.protected) / "index.csv",
        given.faces,
        given.classifier,
        dict(zip(active(config, "deepfakes"), given.models)),
        snakemake.output.records,
    )
