"""Proofs of global bounds by vertices: the slopes of units are split, one after the other, into the two ends of their intervals.

Between two inputs each unit j has a slope s_j in [a_j, b_j] (any, where nothing enters it), and dy = J(s) dx. No path comes to a
unit twice, so J is affine in each single s_j while the others are held, and so the norm of S_out J S_in^-1, any norm, is convex in
s_j: over [a_j, b_j] it is greatest at a_j or at b_j. Hence its supremum over a box of slopes is the greater of those over the two
boxes with s_j = a_j and with s_j = b_j, and, split after split, the greatest over the leaves of a binary tree. The bound is at least
each of these: a leaf's proof is evidence of the kinds without a tree for the network with the slopes of that leaf, where units that
are split are linear, and it bounds |dy| for every s in the leaf's box. Implicit layers, in which paths are circles, are not split:
while their slopes are held they are matrices on the paths of the others.

Sorted groups are absolute values of differences here (see :mod:`lipctrl.certificates.checker.sorts`), with slopes in [-1, 1]:
ends are exchanges of neighbours, or none. The file says which units are split and no more: slopes come from the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lipctrl.certificates.checker.bundle import fields
from lipctrl.certificates.checker.intervals import Array
from lipctrl.certificates.checker.network import Activation, Layer, Network
from lipctrl.certificates.checker.verdict import Rejected
from lipctrl.certificates.checker.verifiers.lipschitz_bound import prove_network
from lipctrl.certificates.checker.verifiers.local_lipschitz import products_of

METHOD = "vertices"
MAX_LEAVES = 4096
MAX_DEPTH = 256  #: splits on the way to a leaf: so many networks are held
MAX_PRODUCTS = 1e12  #: multiplications for the proofs of all leaves
PER_SIGNAL = 1e6  #: multiplications in the time that a signal takes, however small it is


def prove_vertices(network: Network, norm: str, scale_in: Array, scale_out: Array, bound: float, evidence: Mapping[str, Any]) -> None:
    """Return if the evidence proves |S_out dy| <= ``bound`` |S_in dx| at every leaf of its tree, for a network form without sorts.

    Raises Rejected with the reason otherwise, OutOfRange or UnsafeArithmetic where nothing can be decided.
    """
    table = fields(evidence, ("method", "tree", "proofs"), "evidence")
    proofs = table["proofs"]
    if not isinstance(proofs, list) or not 1 <= len(proofs) <= MAX_LEAVES:
        raise Rejected(f"proofs must be a list with 1 to {MAX_LEAVES} entries")
    products = 0.0
    for leaf, entry in leaves(network, table["tree"]):
        if type(entry) is not int or not 0 <= entry < len(proofs) or not isinstance(proofs[entry], dict):
            raise Rejected("a leaf of the tree of vertices must be the index of a proof, a table")
        if proofs[entry].get("method") == "windows":
            raise Rejected("the proof of a vertex has no windows inside")
        products += products_of(leaf, norm, True) + len(leaf.signals) * PER_SIGNAL
        if not products <= MAX_PRODUCTS:
            raise Rejected("the proofs of the vertices are more work than the checker does")
        prove_network(leaf, norm, scale_in, scale_out, bound, proofs[entry])


def leaves(network: Network, tree: object) -> Iterator[tuple[Network, Any]]:
    """The leaves of a tree in preorder, each as the network with its slopes and its entry in the tree.

    ``[layer, unit]`` splits the slope of a coordinate in one of ``network.layers``, the lower end first; all else is a leaf's
    entry. The leaves cover all slopes once the iteration has ended; it raises Rejected where the tree is malformed.
    """
    if not isinstance(tree, list):
        raise Rejected("the tree of vertices must be a list in preorder")
    waiting, count = [(network, 0)], 0
    for entry in tree:
        if not waiting:
            raise Rejected("the tree of vertices has entries left over")
        here, depth = waiting.pop()
        if isinstance(entry, list):
            if depth >= MAX_DEPTH:
                raise Rejected(f"the tree of vertices splits more than {MAX_DEPTH} times in a row")
            low, high = split(here, entry)
            waiting += [(high, depth + 1), (low, depth + 1)]
            continue
        count += 1
        if count > MAX_LEAVES:
            raise Rejected(f"the tree of vertices has more than {MAX_LEAVES} leaves")
        yield here, entry
    if waiting:
        raise Rejected("the tree of vertices ends too early")


def split(network: Network, entry: list[Any]) -> tuple[Network, Network]:
    """The networks in which the unit that ``entry`` ([layer, unit]) names has the lower, and the upper, end of its slopes.

    Raises Rejected where it names no unit whose slope is open.
    """
    if len(entry) != 2 or not all(type(index) is int for index in entry):
        raise Rejected("a split of a vertex must be [layer, unit]")
    places = [place for place, signal in enumerate(network.signals) if isinstance(signal, Layer)]
    layer, unit = entry
    if not 0 <= layer < len(places):
        raise Rejected(f"a split names layer {layer}, this network has {len(places)}")
    signal = network.signals[places[layer]]
    if not (isinstance(signal, Activation) and 0 <= unit < signal.size and signal.low[unit] < signal.high[unit]):
        raise Rejected(f"unit {unit} of layer {layer} has no slopes to be split")
    ends = []
    for slope in (signal.low[unit], signal.high[unit]):
        here = np.arange(signal.size) == unit
        narrowed = replace(signal, low=np.where(here, slope, signal.low), high=np.where(here, slope, signal.high))
        ends.append(replace(network, signals=(*network.signals[: places[layer]], narrowed, *network.signals[places[layer] + 1 :])))
    return ends[0], ends[1]
