"""Records: one line of JSON per measurement, with all that is needed to judge and to repeat it.

A records file is JSON Lines; ``workflow/schemas/record.schema.json`` describes a line, and is checked
when records are written and when they are read. A measurement that could not be made is a record
too: its value is null, and ``why`` says the reason.
"""

import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from holdfast import __version__
from holdfast.errors import HoldfastError
from holdfast.files import write_text

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "record.schema.json"

_PACKAGES = ("numpy", "torch", "torchvision", "scipy", "scikit-image", "pytorch-fid", "pandas", "pillow")


def make_record(
    *,
    metric,
    value,
    n,
    definition,
    unit,
    better_defence,
    subject,
    provenance,
    extra=None,
    std=None,
    why=None,
):
    """One measurement as a plain dictionary that satisfies the schema.

    Args:
        metric: name of the metric.
        value: float, or None where there is none.
        n: what it was computed from: images, unless the definition says otherwise.
        definition, unit, better_defence: as the :class:`holdfast.metrics.metric.Metric` has them.
        subject: dict of what was measured: dataset, model, detector, defence, seed, state ...
        provenance: from :func:`provenance`.
        extra: further numbers, a dict.
        std: sample standard deviation of the per-image values.
        why: the reason of a missing value.

    Raises:
        HoldfastError: a key breaks the schema, or a number is not finite; names the key.
    """
    record = {"metric": metric, "value": value}
    if why is not None:
        record["why"] = why
    record["n"] = n
    if std is not None:
        record["std"] = std
    record |= {
        "definition": definition,
        "unit": unit,
        "better_defence": better_defence,
        "subject": subject,
        "extra": extra or {},
        "provenance": provenance,
    }
    record = _plain(record, (), f"record of '{metric}'")
    check(record, f"record of '{metric}'")
    return record


def record_of(metric, result, *, subject, provenance, pair=None):
    """The record of a metric's result.

    Args:
        metric: a :class:`holdfast.metrics.metric.Metric`.
        result: what its ``compute`` or ``reduce`` gave.
        subject: what was measured; `pair` is added to it.
        provenance: from :func:`provenance`.
        pair: which two sets were compared, a key of :data:`holdfast.metrics.metric.PAIRS`; gives the
            direction of measures of likeness.
    """
    return make_record(
        metric=metric.name,
        definition=metric.definition,
        unit=metric.unit,
        better_defence=metric.better(pair),
        subject=dict(subject) if pair is None else {**subject, "pair": pair},
        provenance=provenance,
        **result,
    )


def provenance(*, config_sha256, seeds, inputs, started, device="cpu"):
    """Where a measurement comes from. The machine's name and its paths are left out on purpose.

    Args:
        config_sha256: sha256 of the merged config, 64 hexadecimal digits.
        seeds: dict of name to int.
        inputs: dict of name to sha256 of each input.
        started: ``time.monotonic()`` at the start of the work.
        device: a torch device, or its name.

    Returns:
        dict: git_commit, git_dirty, holdfast, config_sha256, seeds, inputs, versions, device, platform,
        duration_s, written_at.
    """
    commit, dirty = _checkout()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "holdfast": __version__,
        "config_sha256": config_sha256,
        "seeds": dict(seeds),
        "inputs": dict(inputs),
        "versions": dict(_versions()),
        "device": _device_name(device),
        "platform": _platform(),
        "duration_s": round(time.monotonic() - started, 3),
        "written_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def write_records(path, records):
    """Write records as JSON Lines, all of them or none.

    Raises:
        HoldfastError: a record breaks the schema (names file, line and key), or the disk refuses.
    """
    lines = []
    for number, record in enumerate(records, start=1):
        place = f"{path}, line {number}"
        record = _plain(record, (), place)
        check(record, place)
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path, "".join(lines))


def read_records(paths):
    """The records of one file or of several, in order.

    Args:
        paths: a path, or an iterable of paths.

    Raises:
        HoldfastError: a file is missing, or a line is not JSON or breaks the schema; names file, line
            and key.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    records = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HoldfastError(
                f"cannot read {path}",
                found=getattr(error, "strerror", None) or str(error),
                expected="a file of records, JSON Lines in UTF-8",
                repair="remove it and run again",
            ) from error
        # Not splitlines(): JSON strings may hold other line separators, such as U+2028.
        lines = text.split("\n")
        if lines[-1] == "":
            lines.pop()
        for number, line in enumerate(lines, start=1):
            place = f"{path}, line {number}"
            try:
                record = json.loads(line, parse_constant=_refuse)
            except ValueError as error:
                raise HoldfastError(
                    f"{place} is not a record",
                    found=str(error),
                    expected="one JSON object",
                    repair="remove the file and run again",
                ) from error
            check(record, place)
            records.append(record)
    return records


def _refuse(name):
    raise ValueError(f"{name} is not a number of JSON")


def check(record, place="record"):
    """Raise a :class:`HoldfastError` that names `place` and the key unless `record` fits the schema."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(record))
    if error is None:
        return
    keys = [str(part) for part in error.absolute_path]
    found, expected = _shown(error.instance), error.message
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        keys.append(missing[0])
        found, expected = "no such key", "the key is required"
        if missing[0] == "why":
            found, expected = "a value of null without a reason", "why the measurement is missing, in words"
    elif error.validator == "additionalProperties" and error.validator_value is False:
        unknown = [key for key in error.instance if key not in error.schema["properties"]]
        keys.append(unknown[0])
        found, expected = "an unknown key", "one of " + ", ".join(error.schema["properties"])
    elif error.validator == "not":
        keys.append("why")
        found, expected = "a reason for a missing value, beside a value", "`why` only where the value is null"
    elif "propertyNames" in list(error.absolute_schema_path)[-2:]:
        keys.append(str(error.instance))
    raise HoldfastError(
        f"{place}: '{'.'.join(keys) or 'the record'}' breaks the schema of records",
        found=found,
        expected=expected,
        repair=f"see workflow/schemas/{SCHEMA.name}",
    )


def _shown(value):
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


@functools.cache
def _validator():
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _plain(value, keys, place):
    """NumPy numbers to Python's, tuples to lists; a number that is not finite is refused by its key."""
    if isinstance(value, dict):
        return {str(key): _plain(part, (*keys, str(key)), place) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, (*keys, str(i)), place) for i, part in enumerate(value)]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return _plain(value.tolist(), keys, place)
    if isinstance(value, float) and not math.isfinite(value):
        raise HoldfastError(
            f"{place}: '{'.'.join(keys)}' is not a finite number",
            found=value,
            expected="a finite number, or null with `why`",
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise HoldfastError(
        f"{place}: '{'.'.join(keys)}' cannot be written as JSON",
        found=type(value).__name__,
        expected="text, a number, a boolean, None, or a list or dict of them",
    )


@functools.cache
def _checkout():
    """(commit, dirty) of the checkout that this file belongs to, ("unknown", None) outside one.

    results/ does not count as a change: a run writes there itself. A file that the checkout does not
    track (an environment that lies inside somebody's repository) does not belong to it.
    """
    here = Path(__file__).resolve()
    # A git hook sets GIT_DIR and its kin, which would point git elsewhere.
    environment = {key: text for key, text in os.environ.items() if not key.startswith("GIT_")}

    def git(folder, *arguments):
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=environment,
        )
        return answer.stdout.strip()

    try:
        git(here.parent, "ls-files", "--error-unmatch", here.name)
        root = git(here.parent, "rev-parse", "--show-toplevel")
        commit = git(root, "rev-parse", "--verify", "HEAD")
        dirty = bool(git(root, "status", "--porcelain", "--", ".", ":(exclude)results"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", None
    return commit, dirty


@functools.cache
def _versions():
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, text = line.partition(":")
            if key.strip() in ("model name", "Model") and text.strip():
                return text.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _platform():
    import torch

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def _device_name(device):
    import torch

    device = torch.device(device)
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
