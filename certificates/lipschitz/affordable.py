"""What the checker's limits on work leave of a search: the least bound whose split tree it will judge to the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

from lipctrl.certificates.checker.bundle import graph_cost
from lipctrl.certificates.checker.network import Network
from lipctrl.certificates.checker.verifiers.local_lipschitz import (
    MAX_LEAVES,
    MAX_PRODUCTS,
    MAX_PROOFS,
    MAX_WORK,
    PER_VALUE,
    Problem,
    products_of,
)

SHARE = 0.95  #: of each limit, that is used


class Part(Protocol):
    """A part of the domain in a search tree."""

    own: float  #: the best bound proved on it
    products: float  #: multiplications for its proof
    work: float  #: on its slopes, beside that on any box

    @property
    def has_proof(self) -> bool:
        """Whether it has a proof of its own."""
        ...

    @property
    def parts(self) -> tuple[Part, Part] | None:
        """Both parts, where it was split."""
        ...


def proof_products(problem: Problem, network: Network, in_balls: bool) -> float:
    """About how many multiplications the checker counts for a leaf with this network form."""
    balls = products_of(network, problem.norm, True) if in_balls else 0.0
    return products_of(network, problem.norm, False) + balls + graph_cost(problem.graph)[0] * PER_VALUE


def affordable(problem: Problem, root: Part, upper: float) -> float:
    """The least bound, ``upper`` or one above it, whose tree stays within the checker's limits."""
    if _cost(problem, root, upper) <= SHARE:
        return upper
    bounds = sorted({part.own for part in _all(root) if upper < part.own < math.inf})
    low, high = 0, len(bounds) - 1  # a tree for a larger bound is smaller
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _cost(problem, root, bounds[middle]) <= SHARE else (middle + 1, high)
    return bounds[low] if bounds else upper


def _cost(problem: Problem, root: Part, upper: float) -> float:
    """The greatest share of one of the limits that the smallest tree for a bound needs."""
    leaves = list(_leaves(root, upper))
    work = max(problem.work().total(len(leaves)), sum(leaf.work for leaf in leaves))
    proofs = sum(leaf.has_proof for leaf in leaves)
    products = sum(leaf.products for leaf in leaves)
    return max(work / MAX_WORK, products / MAX_PRODUCTS, proofs / MAX_PROOFS, len(leaves) / MAX_LEAVES)


def _leaves(root: Part, upper: float) -> Iterator[Part]:
    stack = [root]
    while stack:
        part = stack.pop()
        if part.own <= upper or part.parts is None:
            yield part
        else:
            stack += part.parts


def _all(root: Part) -> Iterator[Part]:
    stack = [root]
    while stack:
        part = stack.pop()
        yield part
        stack += part.parts or ()
