"""Multipliers of sorted groups: eliminating the sums loses nothing against the whole family of quadratic constraints."""

from itertools import pairwise

import numpy as np
import pytest

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.lipschitz import certify_lipschitz

cvxpy = pytest.importorskip("cvxpy")


def network(weights, group_size) -> Graph:
    nodes = [Node("input", (), {"name": "observation", "size": weights[0].shape[1]})]
    for k in range(len(weights)):
        nodes.append(Node("affine", (len(nodes) - 1,), {"weight": f"w{k}", "bias": None}))
        if k < len(weights) - 1:
            nodes.append(Node("group_sort", (len(nodes) - 1,), {"group_size": group_size}))
    return Graph(tuple(nodes), {"action": len(nodes) - 1}, {f"w{k}": weight for k, weight in enumerate(weights)})


def whole_family(weights, group_size, only_norms=False):
    """The least bound by [dv; dz]^T [[T - 2 S, P + S], [P + S, -T - 2 P]] [dv; dz] >= 0 in every layer, with blocks
    T = lambda I + gamma 1 1^T, P = nu 1 1^T, S = tau 1 1^T for each group, lambda >= 0; ``only_norms``: lambda alone."""
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights[:-1])]
    ends = np.cumsum([0, *sizes])
    own = np.eye(int(ends[-1]))
    blocks = [own[a:b] for a, b in pairwise(ends)]
    square = cvxpy.Variable(nonneg=True)
    matrix = square * (blocks[0].T @ blocks[0]) - (weights[-1] @ blocks[-1]).T @ (weights[-1] @ blocks[-1])
    for weight, before, after in zip(weights[:-1], blocks[:-1], blocks[1:], strict=True):
        v, z = weight @ before, after
        for begin in range(0, len(weight), group_size):
            v_g, z_g = v[begin : begin + group_size], z[begin : begin + group_size]
            s_v, s_z = v_g.sum(axis=0), z_g.sum(axis=0)
            scale = cvxpy.Variable(nonneg=True)
            matrix = matrix - scale * (v_g.T @ v_g - z_g.T @ z_g)
            if not only_norms:
                gamma, nu, tau = cvxpy.Variable(), cvxpy.Variable(), cvxpy.Variable()
                both = np.outer(s_v, s_z) + np.outer(s_z, s_v)
                matrix = matrix - (gamma - 2 * tau) * np.outer(s_v, s_v) + (gamma + 2 * nu) * np.outer(s_z, s_z) - (nu + tau) * both
    problem = cvxpy.Problem(cvxpy.Minimize(square), [(matrix + matrix.T) / 2 >> 0])
    problem.solve(solver="CLARABEL")
    return float(np.sqrt(square.value))


@pytest.mark.parametrize(
    ("group_size", "sizes", "seed"), [(2, (3, 4, 4, 2), 0), (2, (2, 5, 3, 2), 1), (3, (3, 6, 6, 2), 2), (4, (3, 7, 2), 3)]
)
def test_the_eliminated_form_is_as_strong_as_the_whole_family(group_size, sizes, seed):
    generator = np.random.default_rng(seed)
    weights = [generator.standard_normal((m, n)) for n, m in pairwise(sizes)]
    found = certify_lipschitz(network(weights, group_size), splits=0, tolerance=1e-8)
    whole = whole_family(weights, group_size)
    assert found.floor * (1 - 1e-9) <= found.upper.value <= whole * (1 + 1e-4)
    assert found.upper.value >= whole * (1 - 1e-3)  # a solver's number may lie below the optimum
    assert found.upper.value <= whole_family(weights, group_size, only_norms=True) * (1 + 1e-6)
