"""Whole-valued functions of independent choices as shared, reduced decision diagrams (R. Bryant, IEEE TC 35(8), 1986).

A function that depends on many choices only through a few facts about them has few nodes, so that its expectation is exact
where the assignments are far too many to enumerate: the 2^70 wirings of a DARTS network make a few thousand nodes.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hwnas.errors import SpaceError

_AT_A_TIME = 256  # assignments whose values are kept in the cache together
Function = int
"""A function is the number of its root node; equal functions have equal numbers."""


class Diagrams:
    """Functions of variables 0, 1, ... with `sizes` values each; variables are asked in this order.

    Raises:
        SpaceError: more than `most` nodes were made.
    """

    def __init__(self, sizes: Sequence[int], most: int) -> None:
        self.sizes = tuple(sizes)
        self._most = most
        self._nodes: list[tuple[int, tuple[int, ...]]] = []  # variable and its children by value; behind the last: (value,)
        self._numbers: dict[tuple[int, tuple[int, ...]], Function] = {}
        self._memo: dict[tuple[object, ...], Function] = {}
        self._leaves: dict[Function, frozenset[int]] = {}
        self.false, self.true = self.constant(0), self.constant(1)

    def _number(self, variable: int, children: tuple[int, ...]) -> Function:
        key = variable, children
        if key not in self._numbers:
            if len(self._nodes) >= self._most:
                raise SpaceError(f"the functions need more than the {self._most} nodes that a decision diagram may have")
            self._numbers[key] = len(self._nodes)
            self._nodes.append(key)
        return self._numbers[key]

    def _node(self, variable: int, children: tuple[int, ...]) -> Function:
        return children[0] if len(set(children)) == 1 else self._number(variable, children)

    def constant(self, value: int) -> Function:
        """The function that is `value` everywhere."""
        return self._number(len(self.sizes), (value,))

    def literal(self, variable: int, value: int) -> Function:
        """1 where the variable has that value, else 0."""
        return self._node(variable, tuple(int(v == value) for v in range(self.sizes[variable])))

    def leaves(self, function: Function) -> frozenset[int]:
        """The values that the function takes."""
        if function not in self._leaves:
            variable, children = self._nodes[function]
            if variable == len(self.sizes):
                self._leaves[function] = frozenset(children)
            else:
                self._leaves[function] = frozenset().union(*map(self.leaves, set(children)))
        return self._leaves[function]

    def support(self, function: Function) -> set[int]:
        """The variables that it depends on."""
        found: set[int] = set()
        seen: set[Function] = set()
        left = [function]
        while left:
            number = left.pop()
            variable, children = self._nodes[number]
            if number not in seen and variable < len(self.sizes):
                seen.add(number)
                found.add(variable)
                left += children
        return found

    def _split(self, *functions: Function) -> tuple[int, list[tuple[Function, ...]]]:
        """The first variable that any of them asks, and all of them under each of its values."""
        first = min(self._nodes[f][0] for f in functions)
        branches = [self._nodes[f][1] if self._nodes[f][0] == first else (f,) * self.sizes[first] for f in functions]
        return first, list(zip(*branches, strict=True))

    def choose(self, condition: Function, then: Function, other: Function) -> Function:
        """`then` where the condition is 1, `other` where it is 0."""
        if condition == self.true or then == other:
            return then
        if condition == self.false:
            return other
        if (then, other) == (self.true, self.false):
            return condition
        key = "choose", condition, then, other
        if key not in self._memo:
            variable, branches = self._split(condition, then, other)
            self._memo[key] = self._node(variable, tuple(self.choose(*branch) for branch in branches))
        return self._memo[key]

    def both(self, a: Function, b: Function) -> Function:
        """1 where both are 1."""
        return self.choose(a, b, self.false)

    def either(self, functions: Iterable[Function]) -> Function:
        """1 where any is 1."""
        found = self.false
        for function in functions:
            found = self.choose(found, self.true, function)
        return found

    def without(self, a: Function, b: Function) -> Function:
        """1 where a is 1 and b is 0."""
        return self.choose(b, self.false, a)

    def plus(self, a: Function, b: Function) -> Function:
        """The sum of two functions."""
        return self._apply(operator.add, a, b)

    def at_least(self, function: Function, value: int) -> Function:
        """1 where the function is not below the value."""
        return self._apply(operator.ge, function, self.constant(value))

    def equal(self, a: Function, b: Function) -> Function:
        """1 where the two have the same value."""
        if a == b:
            return self.true
        return self._apply(operator.eq, a, b) if self.leaves(a) & self.leaves(b) else self.false

    def _apply(self, operation: Callable[[int, int], int], a: Function, b: Function) -> Function:
        key = operation, a, b
        if key not in self._memo:
            variable, branches = self._split(a, b) if min(self._nodes[a][0], self._nodes[b][0]) < len(self.sizes) else (-1, [])
            if variable < 0:
                self._memo[key] = self.constant(int(operation(self._nodes[a][1][0], self._nodes[b][1][0])))
            else:
                self._memo[key] = self._node(variable, tuple(self._apply(operation, *branch) for branch in branches))
        return self._memo[key]

    def restrict(self, function: Function, fixed: Mapping[int, int]) -> Function:
        """The function of the other variables where these have fixed values."""
        if not fixed:
            return function
        items = tuple(sorted(fixed.items()))
        last = items[-1][0]

        def go(number: Function) -> Function:
            variable, children = self._nodes[number]
            if variable > last:
                return number
            key = "restrict", number, items
            if key not in self._memo:
                if variable in fixed:
                    self._memo[key] = go(children[fixed[variable]])
                else:
                    self._memo[key] = self._node(variable, tuple(map(go, children)))
            return self._memo[key]

        return go(function)

    def below(self, roots: Iterable[Function]) -> list[Function]:
        """All nodes of these functions, children first."""
        seen: set[Function] = set()
        left = list(roots)
        while left:
            number = left.pop()
            if number not in seen:
                seen.add(number)
                if self._nodes[number][0] < len(self.sizes):
                    left += self._nodes[number][1]
        return sorted(seen, key=lambda number: (-self._nodes[number][0], number))

    def node(self, number: Function) -> tuple[int, tuple[int, ...]]:
        """The variable that a node asks and its children by value; of a constant: the number of variables and (value,)."""
        return self._nodes[number]


class Evaluation:
    """Some functions of one set of diagrams, evaluated together: each shared node once, variable by variable.

    `of`: what of the functions' values is wanted.
    """

    def __init__(self, diagrams: Diagrams, roots: Sequence[Function], of: Callable[[int], float] = float) -> None:
        place: dict[Function, int] = {}
        constants: list[float] = []
        levels: dict[int, list[tuple[int, ...]]] = {}
        for number in diagrams.below(roots):
            variable, children = diagrams.node(number)
            if variable == len(diagrams.sizes):
                constants.append(of(children[0]))
            else:
                levels.setdefault(variable, []).append(tuple(place[child] for child in children))
            place[number] = len(place)
        self.nodes = len(place)
        self._constants = torch.tensor(constants)
        self._levels = [(variable, torch.tensor(children)) for variable, children in levels.items()]
        self._roots = torch.tensor([place[root] for root in roots], dtype=torch.int64)

    def part(self, roots: Int[Tensor, "some"]) -> Evaluation:
        """Those of the functions, without the nodes that only others need."""
        first = len(self._constants)
        starts = [first]
        for _, children in self._levels:
            starts.append(starts[-1] + len(children))
        needed = torch.zeros(self.nodes, dtype=torch.bool)
        needed[:first] = True
        needed[self._roots[roots]] = True
        for (_, children), start in zip(reversed(self._levels), reversed(starts[:-1]), strict=True):
            needed[children[needed[start : start + len(children)]].flatten()] = True
        place = needed.cumsum(0) - 1
        found = copy.copy(self)
        found.nodes = int(needed.sum())
        found._levels = []
        for (variable, children), start in zip(self._levels, starts[:-1], strict=True):
            kept = needed[start : start + len(children)]
            if kept.any():
                found._levels.append((variable, place[children[kept]]))
        found._roots = place[self._roots[roots]]
        return found

    def mean(self, shares: Float[Tensor, "*batch variable value"]) -> Float[Tensor, "*batch root"]:
        """Their expectations under independent variables with these probabilities, differentiable in them."""
        values = self._constants.to(shares).expand(*shares.shape[:-2], -1)
        for variable, children in self._levels:
            children = children.to(shares.device)
            below = torch.unflatten(values.index_select(-1, children.flatten()), -1, tuple(children.shape))
            values = torch.cat([values, (below @ shares[..., variable, : children.shape[1], None]).squeeze(-1)], -1)
        return values.index_select(-1, self._roots.to(shares.device))

    def at(self, assignments: Int[Tensor, "n variable"]) -> Float[Tensor, "n root"]:
        """Their values for each assignment."""
        return torch.cat([self._at(rows) for rows in torch.split(assignments, _AT_A_TIME)])

    def _at(self, assignments: Tensor) -> Tensor:
        values = torch.empty(self.nodes, len(assignments))
        done = len(self._constants)
        values[:done] = self._constants[:, None]
        for variable, children in self._levels:
            made = done + len(children)
            torch.gather(values[:done], 0, children[:, assignments[:, variable]], out=values[done:made])
            done = made
        return values[self._roots].T.double()
