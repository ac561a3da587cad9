"""Close the hole around the equilibrium: a contraction ellipsoid for the real loop, a small level for the disturbed one."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, solve_discrete_lyapunov

from lipctrl.certificates.checker.cells import Loop, keep_factor, level_range
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.closed_loop_lyapunov_bab import Claim, check_contraction

Array = np.ndarray


def slopes_near(loop: Loop, half_width: Array) -> Array:
    """Centre of the loop's slopes (n, n) over a small box around the equilibrium."""
    r = half_width[None]
    with np.errstate(all="ignore"):
        return np.asarray(loop.step(np.zeros_like(r), r, -r, r).slope[0][:, : loop.dimension])


def contraction(loop: Loop, claim: Claim) -> tuple[dict[str, Any], Fraction, Array] | str:
    """Evidence ``origin``, its rate and the half-widths of the hole, for the largest domain that is proved; or why there is none."""
    scale = np.minimum(-claim.low, claim.high)
    A = slopes_near(loop, 1e-9 * scale)
    if not np.isfinite(A).all():
        return "the loop is not finite around the equilibrium"
    spectral = float(np.abs(np.linalg.eigvals(A)).max())
    if not spectral < 1:
        return f"the linearisation at the equilibrium has spectral radius {spectral:.6g}, needs less than 1"
    rate = Fraction(1 - ((1 + spectral) / 2) ** 2).limit_denominator(10**6)
    if rate <= 0:
        return f"the linearisation at the equilibrium has spectral radius {spectral:.9g}, too close to 1"
    norm = (1 + 3 * spectral) / 4  # |A| in the norm of P0: below sqrt(1 - rate), which leaves room for the variation of the slopes
    try:
        P0 = solve_discrete_lyapunov((A / norm).T, np.diag(1 / scale**2))
        L = np.linalg.cholesky(0.5 * (P0 + P0.T)).T
    except (LinAlgError, ValueError):
        return "no local Lyapunov function was found around the equilibrium"
    inverse = np.linalg.inv(L)
    shape = np.sqrt((inverse * inverse).sum(1))  # half-widths of {|L y| <= 1}
    refusal = "the slopes around the equilibrium vary too much on every box tried"
    largest = float((scale / shape).min())
    level = float(claim.rho / np.linalg.eigvalsh(inverse.T @ claim.P @ inverse).max())
    for exponent in range(2, 60):
        size = largest * 2.0 ** -(exponent / 2)
        c0 = min(size**2, level) * (1 - 1e-6)
        hole = shape * np.sqrt(c0) / np.linalg.norm(np.abs(L) @ shape) * (1 - 1e-6)
        origin = {
            "domain": [float(v).hex() for v in shape * size],
            "hole": [float(v).hex() for v in hole],
            "L": [[float(v).hex() for v in row] for row in L],
            "c0": float(c0).hex(),
        }
        try:
            check_contraction(loop, claim, origin, rate)
        except Rejected as error:
            refusal = str(error)
            if "equilibrium" in refusal and "exact" in refusal:
                return refusal
            continue
        return origin, rate, hole
    return refusal


def smallest_level(loop: Loop, claim: Claim, seed: int) -> float | None:
    """A level of V above which points decrease well in spite of the disturbance: where the practical claim may stop."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(64, loop.dimension))
    directions /= np.sqrt(np.einsum("bi,ij,bj->b", directions, claim.P, directions))[:, None]
    keep = keep_factor(claim.kappa)
    for exponent in range(70, 4, -1):
        level = claim.rho * 2.0**-exponent
        y = directions * np.sqrt(level)
        with np.errstate(all="ignore"):
            step = loop.step(y, np.zeros_like(y), y, y)
            margin = step.decrease(claim.P, keep)
            after = np.einsum("bi,ij,bj->b", step.centre_value, claim.P, step.centre_value)
            nominal = keep.low * level_range(claim.P, y, np.zeros_like(y))[0] - after
        if (margin >= 0.5 * nominal).all() and (nominal > 0).all():
            return 16 * level
    return None


def ball_radius(P: Array, level: float) -> float:
    """A radius that surely holds {V <= level} (the checker tests it exactly)."""
    return float(np.sqrt(level / np.linalg.eigvalsh(P).min()) * (1 + 1e-6))
