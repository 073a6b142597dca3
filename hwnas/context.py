"""Context: what a network's operators cost beside or instead of what they cost alone, for what stands before and behind them.

Fusion: a convolution whose result has one reader takes in the addition that reads it, and then the activation behind that (ONNX
Runtime, OpenVINO and TensorRT do both). So an addition costs one price where a convolution takes it in and another where none does. A
fused operator is an operator of its own, `fused_add` or `fused_relu` with the sizes of the plain one.

Borders: runtimes keep images in a layout of their own for dense and depthwise convolutions, but often not for grouped ones. Between the
two, images are laid out anew: an operator more, `to_grouped` or `from_grouped`, or with `_sum` behind it where the operator that reads
also adds its input to its result.

Pressure: weights that stay in a cache from one inference to the next cost less than those that no longer fit, so twice the weights
cost more than twice. `pressure` stands once in every network, times the square of its weights (`CostModel` counts it).

Which of this holds in a network depends on what else is in it. Whether a device has it, measured networks say (`hwnas.calibrate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hwnas import layers
from hwnas.diagram import Diagrams, Function
from hwnas.op import OpSpec
from hwnas.space import IDENTITY, SearchSpace, Site

ADDITION = "add"
ACTIVATIONS = ("relu",)
"""The kinds of operator that stand for themselves in a network and that a convolution takes in, the last it takes."""
FUSED = "fused_"
BORDERS = ("from_grouped", "to_grouped")
"""By whether the operator that reads is grouped."""
SUM = "_sum"
PRESSURE = OpSpec("pressure", 1, 1, 1, 1)
"""Price of the square of a network's weights, these as a share of the most that a network of the space could have."""


def fused(op: OpSpec) -> OpSpec:
    """The operator as it is where a convolution takes it in."""
    return replace(op, kind=FUSED + op.kind)


def plain(op: OpSpec) -> OpSpec | None:
    """The operator of the space that a fused one computes; any other is itself; None for a border and for pressure."""
    if op == PRESSURE or op.kind.removesuffix(SUM) in BORDERS:
        return None
    kind = op.kind.removeprefix(FUSED)  # a space may have a `fused_mbconv` of its own
    return replace(op, kind=kind) if kind in (ADDITION, *ACTIVATIONS) else op


def is_contextual(op: OpSpec) -> bool:
    """Whether it is a fused operator, a border, or pressure."""
    return plain(op) != op


def traits(op: OpSpec) -> tuple[object, ...]:
    """What of an operator decides about its context: operators with equal ones are alike to their neighbours."""
    return op.kind == IDENTITY, layers.takes_in(op), _grouped(op), layers.adds_input(op)


def _grouped(op: OpSpec) -> bool:
    return 1 < op.groups < op.c_in


def _border(op: OpSpec) -> OpSpec:
    """The border before an operator whose input comes in the other layout."""
    kind = BORDERS[_grouped(op)] + SUM * layers.adds_input(op)
    return OpSpec(kind, op.c_in, op.c_in, op.height, op.width)


def contextual(space: SearchSpace) -> tuple[OpSpec, ...]:
    """The fused operators and borders that networks of the space may hold, in one order."""
    operators = space.operators()
    most = max(map(layers.takes_in, operators), default=0)
    kinds = (ADDITION, *ACTIVATIONS) if most == layers.ADDITION else ACTIVATIONS if most else ()
    found = [fused(op) for op in operators if op.kind in kinds]
    if any(map(_grouped, operators)):
        found += sorted({_border(op) for op in operators if not _keeps_layout(op)}, key=str)
    return tuple(found)


def _keeps_layout(op: OpSpec) -> bool:
    return op.kind in (IDENTITY, ADDITION, *ACTIVATIONS)


def lower_for(space: SearchSpace, arch: Sequence[int], prices: Iterable[OpSpec]) -> tuple[OpSpec, ...]:
    """The network's operators as `prices` has them: fused and with borders where it has such."""
    return lower(space, arch) if any(is_contextual(op) and op != PRESSURE for op in prices) else space.lower(arch)


def lower(space: SearchSpace, arch: Sequence[int]) -> tuple[OpSpec, ...]:
    """`space.lower(arch)` with fused operators in the place of those that a convolution takes in, and with borders."""
    resolved = space.resolved(arch)
    readers = Counter(node for site, computes in resolved if computes for node in site.inputs)
    readers[space.output] += 1
    takes: dict[str, int] = {}  # what the convolution that made a node's value can still take in
    grouped: dict[str, bool] = {}  # whether its value comes in the layout of grouped convolutions
    operators = []
    for site, computes in resolved:
        op, source, out = site.op, site.inputs[0], site.output
        lonely, before = readers[source] == 1, grouped.get(source, False)
        makes = layers.takes_in(op)
        if op.kind == IDENTITY:
            makes = takes.get(source, 0) if lonely else 0
        inside = computes and op.kind in ACTIVATIONS and lonely and takes.get(source, 0) >= layers.ACTIVATION
        operators.append(fused(op) if inside else op)
        if not computes:
            continue
        if not _keeps_layout(op) and before != _grouped(op):
            operators.append(_border(op))
        if out in takes:
            inside = max(makes, takes[out]) == layers.ADDITION
            operators.append(fused(space.addition(out)) if inside else space.addition(out))
            makes = layers.ACTIVATION if inside else 0
        takes[out] = makes
        grouped[out] = before if _keeps_layout(op) else _grouped(op)
    return tuple(operators)


def conditions(
    space: SearchSpace, diagrams: Diagrams, sites: Sequence[tuple[Site, Function, Function]], values: dict[str, Function]
) -> Iterator[tuple[OpSpec, Function]]:
    """The contextual operators, each with the choices under which it is there: `lower` for all networks at once.

    `sites`: each with where it is in the network, and where it does more there than hand on or compute what is computed already; of
    sites that are alternatives only one. `values`: which node's value each node has.
    """
    nothing, reads = diagrams.false, dict.fromkeys(values, diagrams.false)
    for site, _, working in sites:
        for node in site.inputs:
            reads[node] = diagrams.plus(reads[node], working)
    reads[space.output] = diagrams.plus(reads[space.output], diagrams.true)
    shared: dict[Function, Function] = {}

    def several(node: str) -> Function:
        """Where the node's value has two readers or more, under whatever name."""
        if values[node] not in shared:
            same = ((diagrams.equal(values[node], value), reads[other]) for other, value in values.items())
            number = nothing
            for alike, reading in same:
                if alike != nothing and reading != nothing:
                    number = diagrams.plus(number, diagrams.choose(alike, reading, nothing))
            shared[values[node]] = diagrams.at_least(number, 2)
        return shared[values[node]]

    fuses, borders = any(layers.takes_in(site.op) for site, _, _ in sites), any(_grouped(site.op) for site, _, _ in sites)
    takes: dict[str, Function] = {}
    grouped: dict[str, Function] = {}
    written: dict[str, Function] = {}
    for site, lives, working in sites:
        if lives == nothing:
            continue
        op, source, out = site.op, site.inputs[0], site.output
        handed_on = diagrams.without(lives, working) if op.kind == IDENTITY else nothing
        before, has = written.get(out, nothing), takes.get(out, nothing)
        if fuses:
            makes = diagrams.constant(layers.takes_in(op))
            if op.kind == IDENTITY:
                makes = diagrams.choose(several(source), nothing, takes.get(source, nothing))
            elif op.kind in ACTIVATIONS:
                able = diagrams.at_least(takes.get(source, nothing), layers.ACTIVATION)
                yield fused(op), diagrams.without(diagrams.both(working, able), several(source))
            adds = diagrams.both(working, before)
            if adds != nothing:
                able = diagrams.either(diagrams.at_least(one, layers.ADDITION) for one in (makes, has))
                yield fused(space.addition(out)), diagrams.both(adds, able)
                has = diagrams.choose(adds, diagrams.choose(able, diagrams.constant(layers.ACTIVATION), nothing), has)
            has = diagrams.choose(diagrams.without(working, before), makes, has)
            takes[out] = diagrams.choose(handed_on, takes.get(source, nothing), has)
        if borders:
            layout = grouped.get(source, nothing)
            if not _keeps_layout(op):
                other = diagrams.without(working, layout) if _grouped(op) else diagrams.both(working, layout)
                yield _border(op), other
                layout = diagrams.constant(int(_grouped(op)))
            has = diagrams.choose(working, layout, grouped.get(out, nothing))
            grouped[out] = diagrams.choose(handed_on, grouped.get(source, nothing), has)
        written[out] = diagrams.either((before, working))
