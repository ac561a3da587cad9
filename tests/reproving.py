"""Is the claim of a stability certificate true? Proved again without its evidence, and attacked by simulation."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lipctrl.certificates.checker.bundle import Certificate, number
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.closed_loop_lyapunov_bab import check_equilibrium, read
from lipctrl.certificates.stability.branch_and_bound import branch_and_bound
from lipctrl.certificates.stability.certify import _below, _inside
from lipctrl.certificates.stability.origin import contraction, slopes_near
from lipctrl.certificates.stability.simulation import step_function
from lipctrl.core.progress import no_progress


def stability_claim_is_true(certificate: Certificate, seed: int = 0) -> bool:
    """Fresh tree and fresh treatment of the origin for the same claim, volume and rates by other means, 20,000 simulated steps."""
    loop, claim, _ = read(certificate)
    if "local_rate" in claim.extra:
        check_equilibrium(loop)
        local = contraction(loop, claim)
        if isinstance(local, str):
            return False
        spectral = np.abs(np.linalg.eigvals(slopes_near(loop, 1e-9 * np.minimum(-claim.low, claim.high)))).max()
        if not spectral**2 <= 1 - number(claim.extra["local_rate"]) + Fraction(1, 10**9):
            return False
        hole = _inside(local[2])
    else:
        level = float(number(claim.extra["reached_level"]))
        radius = float(number(claim.extra["ball"]))
        if not 0 < level <= claim.rho or not np.sqrt(level / np.linalg.eigvalsh(claim.P).min()) <= radius * (1 + 1e-12):
            return False
        hole = _below(claim, level)
    fresh = replace(claim, volume=Fraction(0))
    try:
        outcome = branch_and_bound(loop, fresh, hole, deadline=time.monotonic() + 20, max_cells=10**6, progress=no_progress)
    except Rejected:
        return False
    return outcome.tree is not None and _survives_simulation(certificate, seed)


def _survives_simulation(certificate: Certificate, seed: int) -> bool:
    _, claim, _ = read(certificate)
    step = step_function(certificate.plant, certificate.policy)
    y = np.random.default_rng(seed).uniform(claim.low, claim.high, (20_000, len(claim.low)))
    level = (y @ claim.P * y).sum(1)
    inside = level <= claim.rho
    volume = inside.mean() * np.prod(claim.high - claim.low)
    after = step(y[inside])
    slack = 1e-9 * claim.rho + (float(number(claim.extra["reached_level"])) if "reached_level" in claim.extra else 0.0)
    decreases = ((after @ claim.P * after).sum(1) <= (1 - float(claim.kappa)) * level[inside] + slack).all()
    stays = ((after >= claim.low - 1e-9) & (after <= claim.high + 1e-9)).all()
    return bool(decreases and stays and float(claim.volume) <= volume * 1.05)
