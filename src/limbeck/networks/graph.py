"""Networks on the nodes of a graph (torch-geometric's convolutions), and the plain perceptron that shall replace them."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError, missing_extra, unknown
from limbeck.spectral import with_loops

CONVOLUTIONS = ("gcn", "gat", "sage")


def perceptron(inputs: int, hidden: int, outputs: int, layers: int = 2, dropout: float = 0.0) -> nn.Sequential:
    """``layers`` linear maps, with ReLU and dropout between them: (B, inputs) -> (B, outputs)."""
    _check(layers, hidden, dropout)
    sizes = [inputs, *(layers - 1) * [hidden], outputs]
    body: list[nn.Module] = []
    for a, b in pairwise(sizes):
        body += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*body[:-2])


class GraphNetwork(nn.Module):
    """``layers`` graph convolutions, with ReLU and dropout between them: x (N, inputs), edges (2, E) -> (N, outputs).

    ``kind``: "gcn" (arXiv 1609.02907); "gat" (arXiv 1710.10903), hidden / heads numbers in each of the heads, whose mean is the
    answer; "sage" (arXiv 1706.02216), the mean over a node and its neighbours through one matrix. Edges without loops.
    """

    def __init__(
        self, kind: str, inputs: int, hidden: int, outputs: int, layers: int = 2, dropout: float = 0.5, heads: int = 4
    ) -> None:
        super().__init__()
        if kind not in CONVOLUTIONS:
            raise unknown("graph network", kind, CONVOLUTIONS)
        _check(layers, hidden, dropout)
        if kind == "gat" and (heads < 1 or hidden % heads):
            raise LimbeckError(f"hidden={hidden} must be a multiple of heads={heads}: every head has an equal share")
        try:
            from torch_geometric.nn import GATConv, GCNConv, SAGEConv
        except ImportError:
            raise missing_extra("graph", "graph networks need torch-geometric") from None
        self.kind, self.layers, self.dropout = kind, layers, dropout
        sizes = [inputs, *(layers - 1) * [hidden], outputs]
        self.convolutions = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(sizes)):
            last = i == layers - 1
            if kind == "gcn":
                self.convolutions.append(GCNConv(a, b))
            elif kind == "gat":
                self.convolutions.append(GATConv(a, b if last else b // heads, heads=heads, concat=not last))
            else:
                self.convolutions.append(SAGEConv(a, b, root_weight=False))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        if self.kind == "sage":
            edges = with_loops(edges, len(x))
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x, edges)
            if i < self.layers - 1:
                x = F.dropout(F.relu(x), self.dropout, self.training)
        return x


def _check(layers: int, hidden: int, dropout: float) -> None:
    if layers < 1 or hidden < 1 or not 0 <= dropout < 1:
        raise LimbeckError(f"layers={layers} and hidden={hidden} must be at least 1, and dropout={dropout:g} lie in [0, 1)")
