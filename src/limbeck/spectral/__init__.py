"""Signals on graphs by their frequency: edge lists, the normalised operator, low- and high-pass filters, energy."""

from limbeck.spectral.graphs import (
    check_edges,
    degrees,
    dirichlet_energy,
    high_pass,
    is_undirected,
    low_pass,
    propagate,
    undirected,
    with_loops,
    without_loops,
)

__all__ = [
    "check_edges",
    "degrees",
    "dirichlet_energy",
    "high_pass",
    "is_undirected",
    "low_pass",
    "propagate",
    "undirected",
    "with_loops",
    "without_loops",
]
