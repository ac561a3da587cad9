"""Lipschitz bounds and signs of networks: the search side. What it finds is a record; only the checker's verdict carries a level."""

from lipctrl.certificates.lipschitz.certify import certify_lipschitz
from lipctrl.certificates.lipschitz.evaluation import EvaluationCertificate, certify_evaluation
from lipctrl.certificates.lipschitz.local import Budget, certify_local_lipschitz
from lipctrl.certificates.lipschitz.monotone import MonotonicityCertificate, NotProved, certify_monotone
from lipctrl.certificates.lipschitz.records import LipschitzCertificate, LowerBound, UpperBound, rounded_down
from lipctrl.certificates.lipschitz.witness import slope_between

__all__ = [
    "Budget",
    "EvaluationCertificate",
    "LipschitzCertificate",
    "LowerBound",
    "MonotonicityCertificate",
    "NotProved",
    "UpperBound",
    "certify_evaluation",
    "certify_lipschitz",
    "certify_local_lipschitz",
    "certify_monotone",
    "rounded_down",
    "slope_between",
]
