"""Mutated stability certificates: every one that the checker still accepts makes a claim that is true."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from loops import gain, saturated_scalar
from mutations import mutants
from reproving import stability_claim_is_true

from lipctrl.certificates.checker.bundle import parse_certificate
from lipctrl.certificates.checker.kinds import check
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.stability import certify_stability


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stability")
    results = certify_stability(saturated_scalar()["plant"], gain([-0.5], low=-1, high=1), folder, rate=Fraction(1, 100))
    assert [r.level for r in results] == ["proved", "proved"]
    return {r.arithmetic: r.path for r in results}


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_accepted_mutants_are_true(valid: dict[str, Path], arithmetic: str) -> None:
    accepted = rejected = 0
    for mutant in mutants(valid[arithmetic], 250, seed=5):
        try:
            certificate = parse_certificate(mutant.certificate, mutant.weights)
        except Rejected:
            rejected += 1
            continue
        if check(certificate).status == "rejected":
            rejected += 1
            continue
        accepted += 1
        assert stability_claim_is_true(certificate), mutant.change
    assert rejected > 100 and accepted > 5, (accepted, rejected)
