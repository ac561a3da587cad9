"""Mutated stability certificates: every one that the checker still accepts makes a claim that is true."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from loops import gain, saturated_scalar
from mutations import accepted
from reproving import stability_claim_is_true

from lipctrl.certificates.stability import certify_stability


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stability")
    results = certify_stability(saturated_scalar()["plant"], gain([-0.5], low=-1, high=1), folder, rate=Fraction(1, 100))
    assert [r.level for r in results] == ["proved", "proved"]
    return {r.arithmetic: r.path for r in results}


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_accepted_mutants_are_true(valid: dict[str, Path], arithmetic: str) -> None:
    judged = list(accepted(valid[arithmetic], 250, seed=5))
    for change, certificate in judged:
        assert stability_claim_is_true(certificate), change
    assert 5 < len(judged) < 150
