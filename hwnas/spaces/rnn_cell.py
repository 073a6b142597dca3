"""The recurrent cell of NAO (arXiv 1808.07233) and, with `nodes=9 include_first=False`, of ENAS (arXiv 1802.03268, corrected code).

Node 0 is a highway step from the last hidden state, driven by the token's embedding; every further node is a highway step
from one earlier node with one of four activations, by weights of its own for every (node, predecessor, activation); the new hidden
state is the mean of the nodes. A network reads a window of `steps` tokens from a hidden state of zeros and gives logits for the token
after each of them: the cell is unrolled, and what one step holds every other holds too, with the same (tied) weights.

All choices of predecessor cost the same multiply-adds, so networks differ by their activations and by what a runtime makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hwnas import quick_onnx, resources
from hwnas.errors import ConfigError
from hwnas.layers import operator
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot

Positive = Annotated[int, Field(ge=1)]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "identity": nn.Identity}


class Joined(nn.Module):
    """Its inputs one behind the other along an axis; a single one, as operators are measured, is all of them joined already."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.axis) if len(inputs) > 1 else inputs[0]


class Stacked(nn.Module):
    """Layers that read several maps one below the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.joined, self.body = Joined(2), nn.Sequential(*layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.body(self.joined(*inputs))
        return out


class Cut(nn.Module):
    """`length` entries from `start` on along an axis."""

    def __init__(self, axis: int, start: int, length: int) -> None:
        super().__init__()
        self.axis, self.start, self.length = axis, start, length

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(self.axis, self.start, self.length)


class Zeros(nn.Module):
    """As many maps of zeros as it reads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.zeros: Tensor
        self.register_buffer("zeros", torch.zeros(1, channels, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(1, 0, 1) * self.zeros


class Embedding(nn.Embedding):
    """Tokens (batch, 1, steps, 1), whole numbers as float32, -> (batch, channels, steps, 1); a number out of range is the nearest token.

    Given the hidden states of several steps instead, all `num_embeddings` logits of each, by the same weights (arXiv 1608.05859).
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.decode(torch.cat(inputs, 2)) if len(inputs) > 1 else self.embed(inputs[0])

    def embed(self, tokens: Tensor) -> Tensor:
        numbers = tokens.flatten(1).clamp(0, self.num_embeddings - 1).long()
        return functional.embedding(numbers, self.weight).transpose(1, 2).unsqueeze(3)

    def decode(self, states: Tensor) -> Tensor:
        return torch.matmul(self.weight, states.flatten(2))


class TiedDecoder(Embedding):
    """The embedding as it is measured where it gives logits."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.decode(torch.cat(inputs, 2))


class Highway(nn.Module):
    """`s + sigmoid(c) * (act(g) - s)` with `c` and `g` linear in the input, and `s` its last `channels` channels."""

    def __init__(self, c_in: int, channels: int, activation: str) -> None:
        super().__init__()
        self.joined, self.flat = Joined(1), nn.Flatten()
        self.state = Cut(1, c_in - channels, channels) if c_in > channels else nn.Identity()
        self.transfer, self.candidate = nn.Linear(c_in, channels, bias=False), nn.Linear(c_in, channels, bias=False)
        self.gate, self.activation, self.map = nn.Sigmoid(), ACTIVATIONS[activation](), nn.Unflatten(1, (channels, 1, 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.flat(self.joined(*inputs))
        s = self.state(x)
        out: Tensor = self.map(s + self.gate(self.transfer(x)) * (self.activation(self.candidate(x)) - s))
        return out


def _logits(graph: quick_onnx.Graph, layer: Embedding, *states: str) -> str:
    joined = graph.add("Concat", list(states), axis=2) if len(states) > 1 else states[0]
    maps = graph.add("Reshape", [joined, graph.constant(np.array([0, layer.embedding_dim, -1]))])
    return graph.add("MatMul", [graph.weight(*layer.weight.shape), maps])


def _embedding(graph: quick_onnx.Graph, layer: Embedding, *inputs: str) -> str:
    if len(inputs) > 1:
        return _logits(graph, layer, *inputs)
    limits = (graph.constant(np.array(limit, np.float32)) for limit in (0, layer.num_embeddings - 1))
    flat = graph.add("Flatten", [graph.add("Clip", [inputs[0], *limits])])
    rows = graph.add("Gather", [graph.weight(*layer.weight.shape), graph.add("Cast", [flat], to=onnx.TensorProto.INT64)])
    turned = graph.add("Transpose", [rows], perm=[0, 2, 1])
    return graph.add("Reshape", [turned, graph.constant(np.array([0, layer.embedding_dim, -1, 1]))])


def _cut(graph: quick_onnx.Graph, axis: int, start: int, length: int, x: str) -> str:
    return graph.add("Slice", [x, *(graph.constant(np.array([number])) for number in (start, start + length, axis))])


def _joined(graph: quick_onnx.Graph, layer: Joined, *inputs: str) -> str:
    return graph.add("Concat", list(inputs), axis=layer.axis) if len(inputs) > 1 else inputs[0]


def _zeros(graph: quick_onnx.Graph, layer: Zeros, x: str) -> str:
    return graph.add("Mul", [_cut(graph, 1, 0, 1, x), graph.constant(np.zeros(layer.zeros.shape, np.float32))])


quick_onnx.RULES |= {
    Embedding: _embedding,
    TiedDecoder: _logits,
    Joined: _joined,
    Cut: lambda graph, layer, x: _cut(graph, layer.axis, layer.start, layer.length, x),
    Zeros: _zeros,
}


def _decoding(layer: nn.Module, out: Tensor) -> tuple[str, int]:
    assert isinstance(layer, TiedDecoder)
    return "pointwise", out[0].numel() * layer.embedding_dim


def _free(layer: nn.Module, out: Tensor) -> tuple[str, int]:
    return "none", 0


resources.RULES |= {TiedDecoder: _decoding, **dict.fromkeys((Embedding, Joined, Cut, Zeros), _free)}


@operator("embedding")
def embedding(op: OpSpec) -> nn.Module:
    """The embeddings of a window of tokens, of which there are `hidden`."""
    return Embedding(op.hidden, op.c_out)


@operator("step")
def step(op: OpSpec) -> nn.Module:
    """Step number `kernel`, counted from 1, of a window as high as `stride`."""
    return Cut(2, op.kernel - 1, 1)


@operator("zero_state")
def zero_state(op: OpSpec) -> nn.Module:
    """The hidden state before the first step; what is read does not matter."""
    return Zeros(op.c_out)


@operator("recurrence")
def recurrence(op: OpSpec) -> nn.Module:
    """Node 0: `h + sigmoid(c) (tanh(g) - h)` with `[c, g] = [x, h] W`; reads x and, with `c_out` channels, h."""
    return Highway(op.c_in, op.c_out, "tanh")


def _highway(activation: str) -> None:
    @operator(f"highway_{activation}")
    def highway(op: OpSpec) -> nn.Module:
        return Highway(op.c_in, op.c_out, activation)


for _activation in ACTIVATIONS:
    _highway(_activation)


@operator("mean_state")
def mean_state(op: OpSpec) -> nn.Module:
    """The mean of as many states as the map is high."""
    return Stacked(nn.AdaptiveAvgPool2d(1))


@operator("decoder", sequence=True)
def decoder(op: OpSpec) -> nn.Module:
    """The logits of every step of a map of hidden states."""
    return Stacked(nn.Conv2d(op.c_in, op.c_out, 1), nn.Flatten(2))


@operator("tied_decoder", sequence=True, within="embedding")
def tied_decoder(op: OpSpec) -> nn.Module:
    """The same by the weights of the embedding and without bias."""
    return TiedDecoder(op.c_out, op.c_in)


class RNNCell(SearchSpace):
    """NAO's cell of 11 nodes and an unrolled window of 20 tokens (they train on 35), with 200 hidden units as in ENAS's search."""

    reads: ClassVar[str] = "tokens"
    small: ClassVar[dict[str, Any]] = {"nodes": 2, "hidden": 32, "embedding": 24, "vocabulary": 8, "steps": 2}

    def __init__(
        self,
        *,
        nodes: Positive = 11,
        include_first: bool = True,
        hidden: Annotated[int, Field(ge=2)] = 200,
        embedding: Positive | None = None,
        vocabulary: Annotated[int, Field(ge=3)] = 10_000,
        steps: Annotated[int, Field(ge=2)] = 20,
        tied: bool = False,
    ) -> None:
        """Options: the number of nodes beside node 0, whether it counts in the mean, sizes (`embedding` is `hidden` unless it is
        given), and whether the decoder has the embedding's weights."""
        width = embedding or hidden
        if tied and width != hidden:
            raise ConfigError(f"a tied decoder needs embedding = hidden, but got {width} and {hidden}; leave out embedding or tied")
        self.nodes = nodes
        slots: list[Slot] = []
        places: list[tuple[int | None, int]] = []
        for node in range(1, nodes + 1):
            chooses = len(slots) if node > 1 else None  # node 1 has no predecessor but node 0
            if node > 1:
                slots.append(Slot(f"n{node}.from", tuple(str(earlier) for earlier in range(node))))
            places.append((chooses, len(slots)))
            slots.append(Slot(f"n{node}.act", tuple(ACTIVATIONS)))
        self._places = places
        shared = "vocabulary" if tied else ""
        words = OpSpec("embedding", 1, width, steps, 1, hidden=vocabulary)
        sites = [Site(words, ("input",), "words", tied=shared)]
        sites += [
            Site(OpSpec("step", width, width, steps, 1, kernel=number, stride=steps), ("words",), f"t{number}.word")
            for number in range(1, steps + 1)
        ]
        sites.append(Site(OpSpec("zero_state", width, hidden, 1, 1), ("t1.word",), "t0"))
        counted = range(0 if include_first else 1, nodes + 1)
        mean = OpSpec("mean_state", hidden, hidden, len(counted), 1, stride=len(counted))
        for number in range(1, steps + 1):
            cell = [f"t{number}.n{node}" for node in range(nodes + 1)]
            first = OpSpec("recurrence", width + hidden, hidden, 1, 1)
            sites.append(Site(first, (f"t{number}.word", f"t{number - 1}"), cell[0], tied="n0"))
            for node, (chooses, acts) in enumerate(places, 1):
                for earlier in range(node):
                    source = () if chooses is None else ((chooses, earlier),)
                    for choice, activation in enumerate(ACTIVATIONS):
                        op, name = OpSpec(f"highway_{activation}", hidden, hidden, 1, 1), f"n{node}.{earlier}.{activation}"
                        sites.append(Site(op, (cell[earlier],), cell[node], (*source, (acts, choice)), tied=name))
            sites.append(Site(mean, tuple(cell[node] for node in counted), f"t{number}"))
        states = tuple(f"t{number}" for number in range(1, steps + 1))
        last = OpSpec("tied_decoder" if tied else "decoder", hidden, vocabulary, steps, 1)
        sites.append(Site(last, states, "output", tied=shared))
        super().__init__((1, steps, 1), vocabulary, tuple(slots), tuple(sites))

    def cell(self, arch: Sequence[int]) -> list[tuple[int, str]]:
        """(predecessor, activation) of the nodes 1, 2, ..."""
        names = tuple(ACTIVATIONS)
        return [(0 if chooses is None else arch[chooses], names[arch[acts]]) for chooses, acts in self._places]

    def identity(self, arch: Sequence[int]) -> bytes:
        """The cell as a rooted tree of activations without an order: the mean does not tell its nodes apart."""
        branches: list[list[Any]] = [[] for _ in range(self.nodes + 1)]
        for node, (earlier, activation) in reversed(list(enumerate(self.cell(arch), 1))):
            branches[earlier].append((activation, tuple(sorted(branches[node]))))
        return repr(sorted(branches[0])).encode()
