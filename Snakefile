"""Holdfast: faces -> deepfake models -> perturbations -> protected sets -> retrained models -> tables.

`snakemake --cores all --resources gpu=1` runs config.yaml, the papers' scale. A preset is chosen by its
profile: `snakemake --workflow-profile profiles/demo`. Rules stand in workflow/rules/, in the order of the
data; each has one thin script that calls one function of workflow/holdfast/stages/.
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

HERE = Path(workflow.basedir)
sys.path.insert(0, str(HERE / "workflow"))

import holdfast.config as settings
import holdfast.sources as sources
from holdfast.errors import HoldfastError
from holdfast.modules import SECTIONS, modules_of
from holdfast.yaml_files import read_part

# Scripts run in processes of their own; they import the library from here, installed or not.
settings.prepare_environment_of_jobs()


configfile: HERE / "config.yaml"


# Where the data lie on this machine; see README. Not part of the repository.
try:
    paths = read_part("paths.yaml") if Path("paths.yaml").exists() else {}
    # Those of --configfile, which Snakemake has read already, do not go unchecked: a key twice is refused.
    for preset in workflow.overwrite_configfiles:
        read_part(preset)
except HoldfastError as error:
    sys.exit(f"\nError: {error}\n")

if paths:

    configfile: "paths.yaml"


try:
    completed = settings.complete(config, order=HERE / "config.yaml")
    settings.check_files(completed)
    config.clear()
    config.update(completed)
except HoldfastError as error:
    sys.exit(f"\nError in the config: {error}\n")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/perturb.smk"
include: "workflow/rules/protect.smk"
include: "workflow/rules/retrain.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/publish.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        R / "report.html",
        expand(R / "tables/table_{table}.csv", table=[*TABLES, *STUDIES]),
        expand(R / "figures/figure_{figure}.png", figure=FIGURES),
