"""Records of a small run, for the tests of the tables and of the report."""

import copy

PLAN = {
    "preset": "test",
    "training_set": "synthetic",
    "datasets": {
        "synthetic": {"title": "Synthetic", "skip": None},
        "celeba": {"title": "CelebA", "skip": None},
        "lfw": {"title": "LFW", "skip": "no folder was named for LFW"},
    },
    "deepfakes": {
        "stargan": {"title": "StarGAN", "skip": None},
        "attgan": {"title": "AttGAN", "skip": None},
        "hisd": {"title": "HiSD", "skip": "too slow for this preset"},
    },
    "detectors": {
        "retinaface": {"title": "RetinaFace", "skip": None},
        "s3fd": {"title": "S3FD", "skip": None},
    },
    "defences": {
        "none": {"title": "Original", "skip": None},
        "random": {"title": "Random", "skip": None},
        "cmua": {"title": "CMUA", "skip": None},
        "tsdf": {"title": "TSDF", "skip": None},
    },
    "seeds": [0, 1],
    "attacker": {"detector": "retinaface"},
}


def plan(**changes):
    return {**copy.deepcopy(PLAN), **changes}


def record(metric, value, n=100, why=None, **subject):
    """A record that fits the schema."""
    found = {"metric": metric, "value": value, "n": n}
    if why is not None:
        found["why"] = why
    return found | {
        "definition": f"{metric}, for a test",
        "unit": "",
        "better_defence": "up",
        "subject": subject,
        "extra": {},
        "provenance": {
            "git_commit": "a" * 40,
            "git_dirty": False,
            "holdfast": "0.1.0",
            "config_sha256": "b" * 64,
            "seeds": {"run": 0},
            "inputs": {},
            "versions": {"python": "3.11.2", "numpy": "2.0", "torch": "2.13.0"},
            "device": "cpu",
            "platform": {
                "system": "Linux",
                "machine": "x86_64",
                "cpu": "a <fast> one",
                "cores": 2,
                "threads": 1,
            },
            "duration_s": 1.5,
            "written_at": "2026-01-02T03:04:05Z",
        },
    }


def outputs(metric, value, *, model="stargan", defence="cmua", seed=0, state="original", **rest):
    rest = {"dataset": "celeba"} | rest
    if state == "retrained":
        rest.setdefault("detector", "retinaface")
    others = {name: rest.pop(name) for name in ("n", "why") if name in rest}
    return record(
        metric, value, **others, kind="outputs", model=model, defence=defence, seed=seed, state=state, **rest
    )


def cell(table, **where):
    """The one row of a table that fits, as a dict."""
    found = table
    for name, value in where.items():
        found = found[found[name] == value]
    assert len(found) == 1, f"{where}: {len(found)} rows"
    return found.iloc[0].to_dict()


def a_run():
    """Everything that a run of PLAN measures, with values that follow from the names."""
    records = []
    protecting = ["random", "cmua", "tsdf"]
    for d, dataset in enumerate(["synthetic", "celeba"]):
        for m, model in enumerate(["stargan", "attgan"]):
            for f, defence in enumerate(protecting):
                for seed in (0, 1):
                    for state in ("original", "retrained") if dataset == "synthetic" else ("original",):
                        shift = 0.01 * seed + 0.02 * f + 0.05 * m + 0.001 * d - 0.1 * (state == "retrained")
                        for metric, value in (
                            ("l2_mask", 0.2 + shift),
                            ("sr_mask", min(1.0, 0.9 + shift)),
                            ("fid[attributes]", 30 + 40 * shift),
                            ("psnr", 15 - 20 * shift),
                            ("ssim_released", 0.6 - shift),
                            ("ssim", 0.5 - shift),
                        ):
                            about = {"model": model, "defence": defence, "seed": seed, "state": state}
                            records.append(outputs(metric, value, dataset=dataset, **about))
        for f, defence in enumerate(["none", *protecting]):
            for seed in (0, 1) if f else (0,):
                about = {"dataset": dataset, "defence": defence, "seed": seed}
                for b, detector in enumerate(["retinaface", "s3fd"]):
                    where = {"detector": detector, **about}
                    records.append(
                        record("f1_released", 0.99 - 0.1 * f - 0.01 * b, kind="detection", **where)
                    )
                    records.append(record("f1_truth", 0.95 - 0.1 * f - 0.01 * b, kind="detection", **where))
                    if dataset == "synthetic" and detector == "retinaface":
                        records.append(record("harvest_yield", 0.98 - 0.05 * f, kind="harvest", **where))
                if f:
                    records.append(record("psnr", 32.0 + 0.1 * f + seed, kind="images", **about))
                    records.append(record("ssim", 0.85 + 0.01 * f, kind="images", **about))
                    records.append(record("ssim_released", 0.87 + 0.01 * f, kind="images", **about))
    for m, model in enumerate(["stargan", "attgan"]):
        for f, defence in enumerate([None, "none", *protecting]):
            about = {"kind": "model", "dataset": "synthetic", "model": model}
            about |= {"state": "retrained" if defence else "healthy"}
            about |= {"defence": defence, "seed": 0, "detector": "retinaface"} if defence else {}
            records.append(record("fid_clean[attributes]", 4.0 + 3 * f + m, **about))
            records.append(record("ssim", 0.7 - 0.05 * f, **about))
            records.append(record("ssim_released", 0.72 - 0.05 * f, **about))
            records.append(record("psnr", 20.0 - f, **about))
            for attribute in ("mean", "Black_Hair", "Male"):
                records.append(record("edit_accuracy", 0.9 - 0.1 * f, attribute=attribute, **about))
    return records
