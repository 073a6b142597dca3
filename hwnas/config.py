"""YAML -> validated objects: experiments and devices, and where the data folders are. An unknown key is an error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from hwnas import plugins
from hwnas.device import Device
from hwnas.errors import ConfigError, DeviceError, nearest

if TYPE_CHECKING:
    from hwnas.data import Dataset
    from hwnas.space import SearchSpace
    from hwnas.train import TrainSettings

M = TypeVar("M", bound=BaseModel)


class Named(BaseModel):
    """A plug-in's name with its options beside it: `{name: nsga2, population: 32}`."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Final(BaseModel):
    """Which members of the front are trained in full, from scratch or from the shared weights, and how (`hwnas.train.TrainSettings`)."""

    model_config = ConfigDict(extra="forbid")

    members: Annotated[int, Field(ge=1)] = 12
    warm_start: bool = False
    training: dict[str, Any] = {}


class Calibrated(BaseModel):
    """How many whole networks are measured to correct the prices of operators."""

    model_config = ConfigDict(extra="forbid")

    probes: Annotated[int, Field(ge=8)] = 40


class Experiment(BaseModel):
    """One experiment: space, device, data, searcher, objectives and budgets. Everything that decides a run's result."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "cpu-1t"
    space: Named
    data: Named | None = None
    objectives: Annotated[list[str], Field(min_length=1)] = ["error", "latency_ms"]
    budgets: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    searcher: Named = Named(name="prospector")
    evaluator: Named = Named(name="shared")
    trials: Annotated[int, Field(ge=1)] = 200
    batch: Annotated[int, Field(ge=1)] = 16
    calibration: Calibrated = Calibrated()
    final: Final = Final()
    exporter: Named = Named(name="onnx")
    storage: str | None = None

    def load_device(self) -> Device:
        """The experiment's device."""
        return load_device(self.device)

    def load_data(self) -> Dataset:
        """The experiment's data set.

        Raises:
            ConfigError: it has no data section.
        """
        from hwnas.data import load_data

        if self.data is None:
            raise ConfigError(f"the experiment {self.name} has no data section, and only the evaluator tabular does without; add one")
        return load_data(self.data.name, self.data.options)

    def load_space(self) -> SearchSpace:
        """The experiment's search space."""
        from hwnas.space import load_space

        return load_space(self.space.name, self.space.options)

    def final_training(self) -> TrainSettings:
        """How members of the front are trained."""
        return train_settings(self.final.training, "final.training")


def train_settings(given: dict[str, Any], where: str) -> TrainSettings:
    """Checked training settings; `where` names the section in errors."""
    from hwnas.train import TrainSettings

    known = TrainSettings.__dataclass_fields__
    for key in given:
        if key not in known:
            raise ConfigError(f"{where} has no option {key!r}; {nearest(key, known)}")
    try:
        return pydantic.TypeAdapter(TrainSettings).validate_python(given)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {plugins.first_problem(error)}") from None


def folders(kind: str) -> list[Path]:
    """Where `configs`, `devices` or `latency_tables` are looked for: here, the source tree, the installed package."""
    package = Path(__file__).parent
    candidates = [Path.cwd() / kind, package.parent / kind, package / "_data" / kind]
    source_tree = (package.parent / "pyproject.toml").exists()
    return [path for path in candidates if path.is_dir() and (path.parent != package.parent or source_tree or path.parent == Path.cwd())]


def tables_root(given: Path | None = None) -> Path:
    """The folder of the lookup tables: the one given, else the project's, else the user's data folder."""
    if given is not None:
        return given
    for path in folders("latency_tables"):
        if path.parent.name != "_data" and os.access(path, os.W_OK):
            return path
    import platformdirs

    return Path(platformdirs.user_data_dir("hwnas")) / "latency_tables"


def available(kind: str) -> dict[str, Path]:
    """The YAML files of a kind by name; a nearer folder hides a farther one."""
    found: dict[str, Path] = {}
    for folder in folders(kind):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find(kind: str, name: str) -> Path:
    """The file of that name or path.

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        if not Path(name).is_file():
            raise ConfigError(f"there is no file {name}; give the path of a YAML file or one of: {', '.join(available(kind)) or 'none'}")
        return Path(name)
    known = available(kind)
    if name not in known:
        raise ConfigError(f"there is no {kind.removesuffix('s')} called {name!r}; {nearest(name, known)}")
    return known[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping; with the line.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line} is not valid YAML: {getattr(error, 'problem', None) or 'it cannot be parsed'}; mend that line"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, but holds {type(found).__name__}")
    for key in found:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: a key must be a name, but is {key!r}")
    return found


def parse(model: type[M], given: dict[str, Any], where: str) -> M:
    """`given` as that model.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a wrong value.
    """
    for key in given:
        if key not in model.model_fields:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), model.model_fields)}")
    try:
        return model.model_validate(given)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "extra_forbidden":
            *sections, key = map(str, problem["loc"])
            section = ".".join(sections)
            raise ConfigError(f"{where}: {section} has no option {key!r}; {nearest(key, _fields(model, sections))}") from None
        raise ConfigError(f"{where}: {plugins.first_problem(error)}") from None


def _fields(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """The keys of a section of a model."""
    for name in sections:
        inner = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def load_device(name: str) -> Device:
    """The device of `devices/<name>.yaml`, or of the YAML file at that path.

    Raises:
        DeviceError: there is no such device; the nearest name is suggested.
        ConfigError: its file is wrong.
    """
    if not name.endswith((".yaml", ".yml")) and os.sep not in name and name not in available("devices"):
        raise DeviceError(f"there is no device called {name!r}; {nearest(name, available('devices'))}")
    path = find("devices", name)
    given = {"name": path.stem, **read_yaml(path)}
    return parse(Device, given, str(path))


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of `configs/<name>.yaml`, or of the YAML file at that path, with `key=value` changes; keys may be dotted.

    Raises:
        ConfigError: no such file, wrong content, or an override that is none.
    """
    path = find("configs", name)
    given = {"name": path.stem, **read_yaml(path)}
    for override in overrides:
        apply_override(given, override)
    return parse(Experiment, given, str(path))


def apply_override(given: dict[str, Any], override: str) -> None:
    """Puts `section.key=value` into a configuration; the value is read as YAML."""
    keys, separator, text = override.partition("=")
    if not separator or not keys:
        raise ConfigError(f"{override!r} must have the form key=value, e.g. trials=100 or budgets.latency_ms=0.5")
    *sections, last = keys.split(".")
    place = given
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r} goes into {section!r}, which holds {inner!r} and no keys")
        place = inner
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value in {override!r} is not valid YAML; quote it") from None
