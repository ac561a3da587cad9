"""What the verifiers of every kind must refuse, whatever their claims are."""

from __future__ import annotations

from typing import Any

import pytest

from lipctrl.certificates.checker.graph import Graph, Node
from lipctrl.certificates.checker.intervals import UnsafeArithmetic


def unsafe_arithmetic(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[int]:
    """From now on the probe of the arithmetic in a verifier's module finds "this process rounds upwards"; the orders it was asked for."""
    orders: list[int] = []

    def probe(order: int) -> None:
        orders.append(order)
        raise UnsafeArithmetic("this process rounds upwards")

    monkeypatch.setattr(module, "require_ieee_products", probe)
    return orders


def of_several_ends(size: int) -> tuple[Graph, Graph]:
    """Graphs with two inputs, and with two outputs, of that size."""
    one = Node("input", (), {"name": "x", "size": size})
    return Graph((one, Node("input", (), {"name": "y", "size": size})), {"u": 0}, {}), Graph((one,), {"u": 0, "v": 0}, {})
