"""Holdfast: does a face-protection perturbation still work after the attacker retrains on it?

Data flows one way, and a package imports only from those to its left, from ``training`` and from
the modules of this folder:

    data -> deepfakes, detectors -> defences -> attacker -> metrics -> papers
"""

__version__ = "0.1.0"
