"""Search for proofs of closed-loop stability; the checker judges what is found."""

from lipctrl.certificates.stability.certify import StabilityResult, certify_stability

__all__ = ["StabilityResult", "certify_stability"]
