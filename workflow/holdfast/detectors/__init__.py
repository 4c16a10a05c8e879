"""Face detectors: what the attacker's data preparation starts with and the poisoning attacks."""

from holdfast.registry import collect

DETECTORS = collect(__name__, __path__)
