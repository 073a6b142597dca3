"""Random search: feasible networks drawn at random, each at most once; what every other searcher must beat."""

from __future__ import annotations

from hwnas.searcher import Searcher
from hwnas.space import Architecture


class Random(Searcher):
    """Uniform over the choices of the feasible architectures, as far as `Problem.random` is; ends when nothing new is left."""

    def propose(self, n: int) -> list[Architecture]:
        """The next `n` random networks."""
        return self.unasked(self.random_architectures(n), n)
