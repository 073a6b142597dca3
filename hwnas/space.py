"""Sites and search spaces: which operators a network may contain, and under which decisions. Said once, used by all."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hwnas import layers, plugins
from hwnas.errors import SpaceError
from hwnas.op import OpSpec

Architecture = tuple[int, ...]
Decision = tuple[int, int]
IDENTITY = "identity"
"""The kind of the operator that hands its input on."""
_REMEMBERED = 1 << 17  # certificates of networks kept at a time


@dataclass(frozen=True, slots=True)
class Slot:
    """One decision of the search: its name and the labels of its choices."""

    name: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Operator `op` reads the nodes `inputs` and adds into node `output` where all decisions `when` = ((slot, choice), ...) hold.

    A `weightless` operator gives the same for the same input, so a network holds it once for nodes of equal value; it
    hangs on no decision and is the only writer of its node. An operator of kind `identity` hands its input on.
    Sites with the same `tied` (and the same operator, or see `layers.Kind.within`) share one module: a recurrent cell's steps, a fallback.
    """

    op: OpSpec
    inputs: tuple[str, ...]
    output: str
    when: tuple[Decision, ...] = ()
    weightless: bool = False
    tied: str = ""


@dataclass(eq=False)
class SearchSpace:
    """Slots and sites; a node's value is the sum of what its active sites wrote.

    `sites` stand in topological order: what a site reads is the input node or written by an earlier site.
    A space is one file in `hwnas/spaces/` with a subclass whose keyword-only constructor arguments are its options.
    """

    input_shape: tuple[int, int, int]
    classes: int
    slots: tuple[Slot, ...]
    sites: tuple[Site, ...]
    input: str = "input"
    output: str = "output"
    name: str = "unnamed"
    options: dict[str, Any] = field(default_factory=dict)

    reads: ClassVar[str] = "images"
    """What the networks take, which data must give, and how the input of an exported network is called: `images` or `tokens`."""

    small: ClassVar[dict[str, Any]] = {}
    """Options of a tiny version, for tests and trials: few decisions and small images, with everything in it that the space can do."""

    expectable: ClassVar[bool] = True
    """False where `chosen` is overridden: a rule that conjunctions cannot state has no expected cost and no mixture to follow."""

    def __post_init__(self) -> None:
        written = {self.input}
        for site in self.sites:
            for node in site.inputs:
                if node not in written:
                    raise SpaceError(f"site {site.op} reads node {node!r}, which no earlier site of {self.name} writes")
            seen = [slot for slot, _ in site.when]
            if len(seen) != len(set(seen)):
                raise SpaceError(f"site {site.op} of {self.name} names a slot twice in its decisions {site.when}")
            for slot, choice in site.when:
                if not (0 <= slot < len(self.slots) and 0 <= choice < len(self.slots[slot].choices)):
                    raise SpaceError(f"site {site.op} of {self.name} hangs on decision {(slot, choice)}, which does not exist")
            written.add(site.output)
            if site.weightless and (site.when or len(self.writers[site.output]) > 1):
                raise SpaceError(
                    f"weightless site {site.op} of {self.name} must hang on no decision and be the only writer of {site.output!r}"
                )
            if site.tied and not layers.shares(self.sites[self.module_of[site.tied]].op, site.op):
                raise SpaceError(f"site {site.op} of {self.name} is tied as {site.tied!r} to another operator; tie equal ones only")
        if self.output not in written:
            raise SpaceError(f"no site of {self.name} writes the output node {self.output!r}")

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """The number of choices of each slot."""
        return tuple(len(slot.choices) for slot in self.slots)

    @property
    def size(self) -> int:
        """How many assignments of choices to slots there are (dead and duplicate networks included)."""
        return math.prod(self.num_choices)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(classes,), or (classes, steps) where every token of a window has logits of its own."""
        return (self.classes,) if self.reads == "images" else (self.classes, self.input_shape[1])

    @cached_property
    def id(self) -> str:
        """Name and a digest of the slots and sites: equal ids mean the same space, whatever the options were called."""
        sites = [(str(s.op), s.inputs, s.output, s.when, *([s.tied] if s.tied else [])) for s in self.sites]
        content = json.dumps([self.slots, sites], default=_plain)
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def check(self, arch: Iterable[int]) -> Architecture:
        """The architecture as a tuple of ints.

        Raises:
            SpaceError: wrong length, a choice that does not exist, or a network whose output nothing feeds.
        """
        checked = tuple(int(choice) for choice in arch)
        if len(checked) != len(self.slots):
            raise SpaceError(f"an architecture of {self.name} has {len(self.slots)} choices, but got {len(checked)}: {checked}")
        for slot, choice in zip(self.slots, checked, strict=True):
            if not 0 <= choice < len(slot.choices):
                raise SpaceError(f"slot {slot.name} of {self.name} has choices 0..{len(slot.choices) - 1}, but got {choice}")
        if not self.graph(checked):
            raise SpaceError(f"{self.describe(checked)} of {self.name} has no path from its input to its output")
        return checked

    def is_valid(self, arch: Iterable[int]) -> bool:
        """Whether `check` accepts the architecture."""
        try:
            self.check(arch)
        except SpaceError:
            return False
        return True

    def active(self, arch: Sequence[int]) -> tuple[Site, ...]:
        """The sites whose decisions hold, dead or alive."""
        return tuple(self.sites[i] for i in self.chosen(tuple(arch)))

    def graph(self, arch: Sequence[int]) -> tuple[Site, ...]:
        """The sites that are active and alive (fed by the input, used by the output), in topological order."""
        return tuple(self.sites[i] for i in self.alive(arch))

    def alive(self, arch: Sequence[int]) -> tuple[int, ...]:
        """The indices in `sites` of `graph(arch)`: equal for architectures that are the same network."""
        return self.prune(self.chosen(tuple(arch)))

    def alive_in(self, archs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`alive` of many architectures (n, slot) at once: (site, n), where a site is in a network."""
        alive = np.zeros((len(self.sites), len(archs)), np.bool_)
        if not self.expectable:
            for column, arch in enumerate(archs.tolist()):
                alive[list(self.alive(arch)), column] = True
            return alive
        nothing = np.zeros(len(archs), np.bool_)
        fed = {self.input: ~nothing}
        for i, site in enumerate(self.sites):
            alive[i] = np.logical_or.reduce([fed.get(node, nothing) for node in site.inputs])
            for slot, choice in site.when:
                alive[i] &= archs[:, slot] == choice
            fed[site.output] = fed.get(site.output, nothing) | alive[i]
        used = {self.output: ~nothing}
        for i in range(len(self.sites) - 1, -1, -1):
            alive[i] &= used.get(self.sites[i].output, nothing)
            for node in self.sites[i].inputs:
                used[node] = used.get(node, nothing) | alive[i]
        return alive

    def steps(self, arch: Sequence[int]) -> tuple[Site, ...]:
        """What the network computes: `graph(arch)` with nodes of equal value made one, so that nothing is handed on or computed twice."""
        return tuple(site for site, computes in self.resolved(arch) if computes)

    def lower(self, arch: Sequence[int]) -> tuple[OpSpec, ...]:
        """The operators of the network, in topological order; an addition for every writer of a node but its first.

        Handing on is among them: tables of other runtimes give it a price.
        """
        written: set[str] = set()
        operators = []
        for site, computes in self.resolved(arch):
            operators.append(site.op)
            if computes and site.output in written:
                operators.append(self.addition(site.output))
            written.add(site.output)
        return tuple(operators)

    def resolved(self, arch: Sequence[int]) -> list[tuple[Site, bool]]:
        """The graph without weightless operators on a value that they have had, nodes of equal value under one name, and whether a site
        does more than hand on.
        """
        graph = self.graph(arch)
        writers = Counter(site.output for site in graph)
        same: dict[str, str] = {}
        computed: dict[tuple[OpSpec, tuple[str, ...]], str] = {}
        kept = []
        for site in graph:
            inputs = tuple(same.get(node, node) for node in site.inputs)
            if site.weightless and (site.op, inputs) in computed:
                same[site.output] = computed[site.op, inputs]
                continue
            if site.weightless:
                computed[site.op, inputs] = site.output
            hands_on = site.op.kind == IDENTITY and writers[site.output] == 1 and site.output != self.output
            if hands_on:
                same[site.output] = inputs[0]
            kept.append((replace(site, inputs=inputs), not hands_on))
        return kept

    def addition(self, node: str) -> OpSpec:
        """The operator that adds two values of a node."""
        channels, height, width = self.node_shape(node)
        return OpSpec("add", channels, channels, height, width)

    def prune(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Those of the site indices that lie on a path from the input to the output."""
        fed = {self.input}
        reached = []
        for i in indices:
            if any(node in fed for node in self.sites[i].inputs):
                fed.add(self.sites[i].output)
                reached.append(i)
        used = {self.output}
        kept = []
        for i in reversed(reached):
            if self.sites[i].output in used:
                used.update(self.sites[i].inputs)
                kept.append(i)
        return tuple(reversed(kept))

    def chosen(self, arch: Architecture) -> list[int]:
        """The indices in `sites`, ascending, of the sites that `arch` chooses: those whose decisions hold.

        A space with a rule that conjunctions cannot state overrides this, and nothing else, and sets `expectable` to False.
        """
        indices = set(self._unconditional)
        for decision in enumerate(arch):
            for i in self._by_first_decision.get(decision, ()):
                if all(arch[slot] == choice for slot, choice in self.sites[i].when):
                    indices.add(i)
        return sorted(indices)

    @cached_property
    def _unconditional(self) -> tuple[int, ...]:
        return tuple(i for i, site in enumerate(self.sites) if not site.when)

    @cached_property
    def _by_first_decision(self) -> dict[Decision, list[int]]:
        found: dict[Decision, list[int]] = {}
        for i, site in enumerate(self.sites):
            if site.when:
                found.setdefault(site.when[0], []).append(i)
        return found

    def operators(self) -> tuple[OpSpec, ...]:
        """Every distinct operator the space may need, sorted by key."""
        chosen = {site.op for site in self.sites}
        sums = {self.addition(node) for node, writers in self.writers.items() if _any_together(writers)}
        return tuple(sorted(chosen | sums, key=str))

    @cached_property
    def module_of(self) -> dict[str, int]:
        """The first site of each `tied`: the one under whose index the shared module stands."""
        found: dict[str, int] = {}
        for i, site in enumerate(self.sites):
            if site.tied:
                found.setdefault(site.tied, i)
        return found

    @cached_property
    def reuses(self) -> bool:
        """Whether a network may use one module at several sites; tied sites that are alternatives share it, but one at a time."""
        return any(_any_together([site for site in self.sites if site.tied == tie]) for tie in self.module_of)

    def module_index(self, index: int) -> int:
        """The index of the site under which the module of site `index` stands: its own, or the first of those it is tied to."""
        return self.module_of.get(self.sites[index].tied, index)

    def stored(self, arch: Sequence[int]) -> tuple[OpSpec, ...]:
        """The operators whose weights the network holds: those of `graph(arch)`, tied ones once."""
        return tuple(self.sites[i].op for i in dict.fromkeys(map(self.module_index, self.alive(arch))))

    def identity(self, arch: Sequence[int]) -> bytes:
        """A certificate of the network: equal ones are the same network up to the names of its nodes; empty where there is none.

        Nodes are told apart by what feeds them and what they feed, and numbered in that order; where several look alike
        one is singled out and the rest told apart anew. If those are no automorphic images of each other (no space here
        has such) a duplicate may be missed; two different networks never get the same certificate.
        """
        key = tuple(arch)
        if key not in self._identities:
            if len(self._identities) >= _REMEMBERED:
                self._identities.clear()
            self._identities[key] = certificate([site for site, computes in self.resolved(key) if computes], self.input, self.output)
        return self._identities[key]

    @property
    def swaps(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Pairs of slots whose choices, all changed over at once, may leave the network what it is."""
        return ()

    def twins(self, arch: Architecture) -> list[Architecture]:
        """Other choices that make the same network, one for each of `swaps` that leaves it what it is."""
        found = []
        for pairs in self.swaps:
            twin = list(arch)
            for a, b in pairs:
                twin[a], twin[b] = arch[b], arch[a]
            if tuple(twin) != arch and self.identity(twin) == self.identity(arch):
                found.append(tuple(twin))
        return found

    shortest: ClassVar[int] = 1
    """Slots of the shortest prefix that a progressive search begins with."""

    @cached_property
    def rest(self) -> Architecture:
        """What completes a prefix: of every slot the first choice that does nothing but hand on, else the first."""
        found = []
        for slot, number in enumerate(self.num_choices):
            sites = [[site.op.kind for site in self.sites if (slot, choice) in site.when] for choice in range(number)]
            found.append(next((choice for choice, kinds in enumerate(sites) if kinds and set(kinds) == {IDENTITY}), 0))
        return tuple(found)

    def extensions(self, prefix: Architecture) -> list[Architecture]:
        """The prefixes that are longer by one choice."""
        return [(*prefix, choice) for choice in range(self.num_choices[len(prefix)])]

    def completed(self, prefix: Architecture) -> Architecture:
        """The architecture that a prefix stands for."""
        return (*prefix, *self.rest[len(prefix) :])

    @cached_property
    def _identities(self) -> dict[Architecture, bytes]:
        return {}

    @cached_property
    def writers(self) -> dict[str, list[Site]]:
        """The sites that write each node."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.output, []).append(site)
        return found

    def node_shape(self, node: str) -> tuple[int, int, int]:
        """(channels, height, width) of a node's value."""
        if node == self.input:
            return self.input_shape
        return self._node_shapes[node]

    @cached_property
    def _node_shapes(self) -> dict[str, tuple[int, int, int]]:
        shapes: dict[str, tuple[int, int, int]] = {}
        for site in self.sites:
            shape = (site.op.c_out, site.op.out_height, site.op.out_width)
            if shapes.setdefault(site.output, shape) != shape:
                raise SpaceError(f"node {site.output!r} of {self.name} is written with shapes {shapes[site.output]} and {shape}")
        return shapes

    def random(self, rng: np.random.Generator) -> Architecture:
        """An architecture drawn uniformly from the valid ones."""
        for _ in range(1000):
            arch = tuple(int(rng.integers(n)) for n in self.num_choices)
            if self.graph(arch):
                return arch
        raise SpaceError(f"none of 1000 random architectures of {self.name} has a path from input to output; mend its sites")

    def all(self) -> Iterator[Architecture]:
        """Every assignment of choices, also those without a path to the output, in lexicographic order."""
        return (tuple(int(i) for i in index) for index in np.ndindex(*self.num_choices))

    def describe(self, arch: Sequence[int]) -> str:
        """The architecture in the labels of its choices, `slot=label` separated by blanks."""
        return " ".join(f"{slot.name}={slot.choices[choice]}" for slot, choice in zip(self.slots, arch, strict=True))

    def parse(self, text: str) -> Architecture:
        """The architecture written as choice numbers (`0,3,1`) or as `describe` writes it.

        Raises:
            SpaceError: the text is neither, or names a slot or label that does not exist.
        """
        words = text.replace(",", " ").split()
        if all(re.fullmatch(r"-?[0-9]+", word) for word in words):
            return self.check(int(word) for word in words)
        chosen = dict(word.partition("=")[::2] for word in words)
        missing = [slot.name for slot in self.slots if slot.name not in chosen]
        if missing or len(words) != len(self.slots):
            raise SpaceError(f"{text!r} must give every slot of {self.name} once; missing: {', '.join(missing) or 'none'}")
        for slot in self.slots:
            if chosen[slot.name] not in slot.choices:
                raise SpaceError(f"slot {slot.name} has choices {', '.join(slot.choices)}, but got {chosen[slot.name]!r}")
        return self.check(slot.choices.index(chosen[slot.name]) for slot in self.slots)


def certificate(steps: Sequence[Site], start: str, end: str) -> bytes:
    """A digest of a network that does not depend on the names of its nodes or on the order of its steps; see `SearchSpace.identity`."""
    if not steps:
        return b""
    written = {start, *(site.output for site in steps)}
    if any(node not in written for site in steps for node in site.inputs):  # dead inputs are zeros, all alike
        steps = [replace(site, inputs=tuple(node if node in written else "" for node in site.inputs)) for site in steps]
        written.add("")
    marks = {start: 1, end: 2, "": 3}
    names = {op: int.from_bytes(hashlib.blake2b(str(op).encode(), digest_size=8).digest()) for op in {site.op for site in steps}}
    nodes = list(dict.fromkeys([start, *(site.output for site in steps), *written]))
    colours = {node: marks.get(node, 0) for node in nodes}
    ties: dict[str, int] = {}
    classes = 0
    while True:
        labels = [(names[site.op], ties.get(site.tied, 0)) for site in steps]
        fed: dict[str, list[int]] = {}
        below = dict(colours)
        for k, site in enumerate(steps):  # topological: all writers of a node stand before its first reader
            for node in site.inputs:
                if node in fed:
                    below[node] = hash((colours[node], *sorted(fed.pop(node))))
            fed.setdefault(site.output, []).append(hash((labels[k], *(below[node] for node in site.inputs))))
        for node, writers in fed.items():
            below[node] = hash((colours[node], *sorted(writers)))
        used: dict[str, list[int]] = {}
        above: dict[str, int] = {}
        for k, site in zip(range(len(steps) - 1, -1, -1), reversed(steps), strict=True):
            if site.output not in above:
                above[site.output] = hash((below[site.output], *sorted(used.get(site.output, ()))))
            for position, node in enumerate(site.inputs):
                used.setdefault(node, []).append(hash((labels[k], position, above[site.output])))
        for root in {start, ""} & used.keys():
            above[root] = hash((below[root], *sorted(used[root])))
        groups: dict[str, list[int]] = {}
        for k, site in enumerate(steps):
            if site.tied:
                groups.setdefault(site.tied, []).append(hash((labels[k], above[site.output], *(above[node] for node in site.inputs))))
        ties = {tie: hash(tuple(sorted(members))) for tie, members in groups.items()}
        colours = above
        counts = Counter(colours.values())
        if len(counts) == len(nodes):
            break
        if len(counts) == classes:  # nothing was told apart any more: single one out of those that look alike
            alike = min(colour for colour, number in counts.items() if number > 1)
            colours[next(node for node in nodes if colours[node] == alike)] = hash((alike, len(counts)))
            classes = 0
            continue
        classes = len(counts)
    order = {node: i for i, node in enumerate(sorted(nodes, key=colours.__getitem__))}
    tied = {tie: i for i, tie in enumerate(sorted(ties, key=ties.__getitem__))}
    lines = sorted(f"{order[s.output]}<{','.join(str(order[n]) for n in s.inputs)}:{s.op}:{tied.get(s.tied, '')}" for s in steps)
    return hashlib.blake2b(";".join([str(order[start]), str(order[end]), *lines]).encode(), digest_size=16).digest()


def _any_together(sites: Sequence[Site]) -> bool:
    """Whether the decisions of two of the sites can hold at the same time."""
    choices = [dict(site.when) for site in sites]
    return any(all(b.get(slot, choice) == choice for slot, choice in a.items()) for a, b in combinations(choices, 2))


def _plain(value: Slot) -> list[Any]:
    return [value.name, list(value.choices)]


def load_space(name: str, options: dict[str, Any] | None = None) -> SearchSpace:
    """The space of `hwnas/spaces/<name>.py` made with these options, which it keeps, JSON-able, in `options`.

    Raises:
        PluginError: there is no such space.
        ConfigError: an option that it does not have or that is out of range.
    """
    from pydantic_core import to_jsonable_python

    checked = plugins.options("spaces", name, options or {})
    space: SearchSpace = plugins.load("spaces", name)(**checked)
    space.name, space.options = name, to_jsonable_python(checked)
    return space
