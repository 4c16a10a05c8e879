"""Metrics: pure functions of tensors and boxes; they know no models."""

from holdfast.registry import collect

METRICS = collect(__name__, __path__)
