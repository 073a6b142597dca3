"""Any sampler of Optuna by its name, through an in-memory study: tpe, gp, nsgaii, nsgaiii, qmc, cmaes, random, ..."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import Tensor

from hwnas.errors import ConfigError, nearest
from hwnas.evaluate import Trial
from hwnas.evolution import ends
from hwnas.searcher import Problem, Searcher
from hwnas.space import Architecture

_ORDERED = ("cmaes", "qmc")  # samplers that know no categories, in all versions of Optuna: they get the choices' numbers
_DEFAULTS: dict[str, dict[str, Any]] = {"tpe": {"multivariate": True}}  # slot by slot it takes three times as long and finds less
_SEQUENCES = ("qmc",)  # samplers that go on with one sequence, which hangs on the seed
_TRIES = 4  # proposals a wanted architecture
_STEPS = 2  # random changes that make a new network of a proposal that is none


class Optuna(Searcher):
    """Optuna's ask and tell, a categorical parameter for each slot; known costs are told as values of objectives.

    A proposal over a budget or of a network asked before is told as a failed trial, which samplers leave out. Where a sampler
    has proposed four times as many as wanted and still too few are new, networks near its proposals take their place, then random
    ones. The first two asked are the cheapest and the costliest network, known for free. The sampler is made anew for every ask, with
    a seed of its own, so that nothing but the study has to be kept for it to go on as it would have.

    Args:
        sampler: `tpe` or `TPESampler`: a class of `optuna.samplers` that needs no arguments.
        options: its arguments, as in `{n_startup_trials: 20}`; `tpe` is multivariate unless they say otherwise.
    """

    small: ClassVar[dict[str, Any]] = {"sampler": "nsgaii", "options": {"population_size": 4}}

    def __init__(
        self, problem: Problem, rng: np.random.Generator, *, sampler: str = "tpe", options: dict[str, Any] | None = None
    ) -> None:  # fmt: skip
        super().__init__(problem, rng)
        self._name = _short(sampler)
        self._class = sampler_class(sampler)
        self._options = {**_DEFAULTS.get(self._name, {}), **(options or {})}
        known = [name for name in inspect.signature(self._class).parameters if name != "seed" and not name.startswith("warn")]
        for key in self._options:
            if key not in known:
                raise ConfigError(f"Optuna's {self._class.__name__} has no option {key!r}; {nearest(key, known)}")
        self._parameters: dict[str, BaseDistribution] = {
            slot.name: IntDistribution(0, n - 1) if self._name in _ORDERED else CategoricalDistribution(range(n))
            for slot, n in zip(problem.space.slots, problem.space.num_choices, strict=True)
        }
        self._seed = int(rng.integers(2**31))
        self._study = self._new_study()
        try:
            self._renew(self._study, 0)
            for _ in range(2):
                self._study.tell(self._study.ask(self._parameters), [0.0] * len(problem.objectives))
        except (ImportError, TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                f"Optuna's {self._class.__name__} cannot be used for {len(problem.objectives)} objectives: {reason}"
            ) from None
        self._study = self._new_study()

    def propose(self, n: int) -> list[Architecture]:
        """What the sampler proposes, as far as it is new and keeps the budgets; else networks near to that."""
        self._renew(self._study, self._seed if self._name in _SEQUENCES else int(self.rng.integers(2**31)))
        proposals: list[tuple[Architecture, int]] = []
        wanted = self.unasked(self._proposals(n, proposals), n)
        found = self.unasked(chain(self._ends, wanted, self._near(proposals), self.random_architectures(n)), n)
        numbers = dict(reversed(proposals))
        for arch, number in proposals:
            if arch not in found or numbers[arch] != number:
                self._study.tell(number, state=TrialState.FAIL)
        for arch in found:
            if arch not in numbers:
                self._study.enqueue_trial(self._named(arch))
                self._ask()
        return found

    def tell(self, trials: Sequence[Trial]) -> None:
        """Those that `learn` was not given have failed."""
        super().tell(trials)
        running = self._running()
        for trial in trials:
            if trial.arch in running:
                self._study.tell(running[trial.arch], state=TrialState.FAIL)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Tells the study; what others asked is added to it."""
        running = self._running()
        for trial in trials:
            values = trial.vector(self.problem.objectives)
            if trial.arch in running:
                self._study.tell(running[trial.arch], values)
            else:
                self._study.add_trial(create_trial(params=self._named(trial.arch), distributions=self._parameters, values=values))

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The study's trials (choices, values, states) with what the sampler noted on each and on the study."""
        trials = self._study.get_trials(deepcopy=False)
        none = [math.nan] * len(self.problem.objectives)
        tensors = {
            "archs": torch.tensor([self._arch(trial) for trial in trials], dtype=torch.int64).reshape(len(trials), -1),
            "values": torch.tensor([trial.values or none for trial in trials], dtype=torch.float64).reshape(len(trials), -1),
            "states": torch.tensor([int(trial.state) for trial in trials], dtype=torch.int64),
        }
        noted = [dict(trial.system_attrs) for trial in trials]
        return tensors, {"seed": self._seed, "noted": noted, "study": self._storage.get_study_system_attrs(self._id)}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self._seed, self._study = values["seed"], self._new_study()
        rows = zip(*(tensors[name].tolist() for name in ("archs", "values", "states")), values["noted"], strict=True)
        for arch, objectives, state, noted in rows:
            self._study.add_trial(
                create_trial(
                    params=self._named(arch), distributions=self._parameters, state=TrialState(state), system_attrs=noted,
                    values=objectives if state == TrialState.COMPLETE else None,
                )
            )  # fmt: skip
        for key, value in values["study"].items():
            self._storage.set_study_system_attr(self._id, key, value)

    def _new_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=self._storage, directions=["minimize"] * len(self.problem.objectives))
        study.stop = lambda: None  # type: ignore[method-assign]  # brute force ends the loop of `optimize`; there is none here
        self._id = self._storage.get_study_id_from_name(study.study_name)
        return study

    def _renew(self, study: optuna.Study, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = self._class(**self._options, seed=seed)  # type: ignore[call-arg]

    def _ask(self) -> tuple[Architecture, int]:
        trial = self._study.ask(self._parameters)
        return self._arch(trial), trial.number

    def _proposals(self, n: int, noted: list[tuple[Architecture, int]]) -> Iterator[Architecture]:
        for _ in range(_TRIES * n):
            noted.append(self._ask())
            yield noted[-1][0]

    def _near(self, proposals: Sequence[tuple[Architecture, int]]) -> Iterator[Architecture]:
        for arch, _ in proposals:
            if self.problem.space.graph(arch) and bool(self.problem.feasible([arch])[0]):
                yield self.problem.walk(arch, self.rng, _STEPS)

    def _named(self, arch: Iterable[int]) -> dict[str, int]:
        return dict(zip(self._parameters, arch, strict=True))

    def _arch(self, trial: FrozenTrial | optuna.Trial) -> Architecture:
        return tuple(int(trial.params[slot.name]) for slot in self.problem.space.slots)

    def _running(self) -> dict[Architecture, int]:
        """The numbers of the trials that were asked and not told yet."""
        return {self._arch(trial): trial.number for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}

    @cached_property
    def _ends(self) -> list[Architecture]:
        return ends(self.problem)


def _short(sampler: str) -> str:
    return sampler.lower().removesuffix("sampler").replace("_", "").replace("-", "")


def sampler_class(name: str) -> type[optuna.samplers.BaseSampler]:
    """Optuna's sampler of that name.

    Raises:
        ConfigError: there is none, or it needs arguments; the nearest name is suggested.
    """
    known: dict[str, Any] = {}
    for found in [getattr(optuna.samplers, public) for public in optuna.samplers.__all__]:
        if inspect.isclass(found) and not inspect.isabstract(found):
            arguments = inspect.signature(found).parameters
            if "seed" in arguments and all(argument.default is not argument.empty for argument in arguments.values()):
                known[_short(found.__name__)] = found
    if _short(name) not in known:
        raise ConfigError(f"Optuna has no sampler called {name!r} that needs no arguments; {nearest(_short(name), known)}")
    found_class: type[optuna.samplers.BaseSampler] = known[_short(name)]
    return found_class
