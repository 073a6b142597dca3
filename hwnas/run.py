"""A run's folder: trials in an Optuna storage, checkpoints in safetensors, the resolved configuration beside them.

Whatever happens, what was told is there again after a restart.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hwnas.checkpoint import load_state, save_state
from hwnas.config import Experiment, parse, read_yaml
from hwnas.errors import RunError, SpaceError
from hwnas.evaluate import Objective, Trial
from hwnas.searcher import State
from hwnas.space import SearchSpace

if TYPE_CHECKING:
    import optuna

_STUDY = "search"


class Run:
    """One search's folder.

    `config.yaml` is the resolved experiment, `trials.db` the trials (or another storage by the experiment's URL),
    `searcher.safetensors` the searcher as of `told` trials, `members/` the trained members of the front.
    """

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self.folder = folder
        self.experiment = experiment
        self._study: optuna.Study | None = None

    @classmethod
    def create(cls, folder: Path, experiment: Experiment) -> Run:
        """A new run, or the one that is there if its configuration is the same; one that has nothing yet but a configuration is replaced.

        Raises:
            RunError: the folder cannot be written to or holds a run of another configuration.
        """
        path = folder / "config.yaml"
        if path.exists():
            there = cls.open(folder).experiment
            different = _differences(there.model_dump(), experiment.model_dump())
            begun = there.storage is not None or any(other.name != path.name for other in folder.iterdir())
            if different and begun:
                raise RunError(
                    f"{folder} holds a run of another configuration ({'; '.join(different)}); choose another folder with --run or delete it"
                )
            if not different:
                return cls(folder, experiment)
        text = yaml.safe_dump(experiment.model_dump(), sort_keys=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if experiment.storage is not None:
                _ = cls(folder, experiment).study  # a storage that cannot be opened must not leave a run behind
            unfinished = folder / "config.yaml.tmp"
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, path)
        except OSError as error:
            raise RunError(f"cannot write to the run's folder {folder}: {error.strerror}; choose another one with --run") from None
        return cls(folder, experiment)

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """The run in a folder.

        Raises:
            RunError: there is none.
            ConfigError: its configuration is damaged.
        """
        folder = Path(folder)
        path = folder / "config.yaml"
        if not path.is_file():
            raise RunError(f"{folder} is not a run: it has no config.yaml; start one with `hwnas search CONFIG`")
        return cls(folder, parse(Experiment, read_yaml(path), str(path)))

    @property
    def study(self) -> optuna.Study:
        """The Optuna study that holds the trials.

        Raises:
            RunError: the database cannot be opened or is damaged.
        """
        if self._study is None:
            import optuna
            import sqlalchemy.exc

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            url = self.experiment.storage or f"sqlite:///{(self.folder / 'trials.db').resolve()}"
            directions = [optuna.study.StudyDirection.MINIMIZE] * len(self.experiment.objectives)
            name = _STUDY if self.experiment.storage is None else f"{_STUDY} {self.experiment.name}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study = optuna.create_study(study_name=name, storage=url, directions=directions, load_if_exists=True)
            except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ValueError, OSError, ImportError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"cannot open the trials' database {url}: {reason}; restore it from a copy or delete it to start again"
                ) from None
        return self._study

    def trials(self, space: SearchSpace) -> list[Trial]:
        """All recorded trials in the order in which they were asked.

        Raises:
            RunError: the database is damaged, or its trials are not of this space.
        """
        import sqlalchemy.exc

        try:
            stored = self.study.get_trials(deepcopy=False)
            found = [_trial(entry.user_attrs, space) for entry in stored if entry.state.is_finished()]
        except (sqlalchemy.exc.SQLAlchemyError, KeyError, TypeError, SpaceError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"the trials' database of {self.folder} is damaged: {reason}; restore it from a copy or start a new run"
            ) from None
        unique = {trial.index: trial for trial in found}
        return [unique[index] for index in sorted(unique)]

    def record(self, trial: Trial, space: SearchSpace, objectives: Sequence[Objective]) -> None:
        """Writes one finished trial, in one transaction. A value that is not finite makes a failed trial."""
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        params = {slot.name: slot.choices[choice] for slot, choice in zip(space.slots, trial.arch, strict=True)}
        vector = trial.vector(objectives)
        fine = all(math.isfinite(value) for value in vector)
        attributes: dict[str, Any] = {
            "index": trial.index,
            "arch": list(trial.arch),
            "values": _jsonable(trial.values),
            "notes": trial.notes,
        }
        self.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if fine else TrialState.FAIL,
                values=vector if fine else None,
                params=params,
                distributions={slot.name: CategoricalDistribution(slot.choices) for slot in space.slots},
                user_attrs=attributes,
            )
        )

    def save_searcher(self, state: State, told: int, trained: dict[str, Any] | None = None) -> None:
        """Replaces the checkpoint: the searcher as of `told` trials."""
        tensors, values = state
        save_state(self.folder / "searcher.safetensors", tensors, {"told": told, "searcher": values, **(trained or {})})

    def load_searcher(self) -> tuple[State, int] | None:
        """The searcher's state and how many trials it had been told; None before the first checkpoint.

        Raises:
            RunError: the checkpoint is damaged.
        """
        path = self.folder / "searcher.safetensors"
        if not path.exists():
            return None
        tensors, values = load_state(path)
        if "told" not in values or "searcher" not in values:
            raise RunError(f"{path} is not a searcher's checkpoint; delete it to search again from the recorded trials' start")
        return (tensors, values["searcher"]), int(values["told"])


def _trial(attributes: dict[str, Any], space: SearchSpace) -> Trial:
    values = {name: math.nan if value is None else float(value) for name, value in attributes["values"].items()}
    return Trial(int(attributes["index"]), space.check(attributes["arch"]), values, attributes["notes"])


def _jsonable(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [f"{key}: {there.get(key)!r} there, {here.get(key)!r} now" for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
