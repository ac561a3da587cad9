"""What searches are given: networks in file form, and scales."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from implicit_graphs import scalar

from lipctrl.certificates.lipschitz.given import as_texts, graph_of, scale_of
from lipctrl.core.errors import InputError


def test_a_graph_what_has_one_and_what_makes_one() -> None:
    graph = scalar(0.5)
    for network in (graph, SimpleNamespace(graph=graph), SimpleNamespace(graph=lambda: graph)):
        found = graph_of(network)
        assert found is not graph and found.digest() == graph.digest()
        assert all(np.array_equal(found.tensors[name], values) for name, values in graph.tensors.items())


def test_scales_are_exact_and_positive() -> None:
    assert scale_of(None, 2, "input_scale") is None and as_texts(None) is None
    for values, expected in (("1/3", (Fraction(1, 3),) * 2), ([1, 0.5], (Fraction(1), Fraction(1, 2)))):
        assert scale_of(values, 2, "input_scale") == expected
    assert as_texts((Fraction(1, 3), Fraction(2))) == ["1/3", "2"]
    for values in ([1, 0], [-1, 1], 0):
        with pytest.raises(InputError, match="^input_scale is .*, expected positive numbers$"):
            scale_of(values, 2, "input_scale")
    with pytest.raises(InputError, match="output_scale"):
        scale_of([1, 2, 3], 2, "output_scale")
