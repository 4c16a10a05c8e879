"""Defences: perturbations within a budget that protect faces."""

from holdfast.registry import collect

DEFENCES = collect(__name__, __path__)
