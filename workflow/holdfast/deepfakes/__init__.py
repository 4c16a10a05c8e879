"""Deepfake models: what the attacker uses and the interruption attacks."""

from holdfast.registry import collect

DEEPFAKES = collect(__name__, __path__)
