"""Faces: data sets are prepared once into packed arrays with an index and a report."""

from holdfast.registry import collect

DATASETS = collect(__name__, __path__)
