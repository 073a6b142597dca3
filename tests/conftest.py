"""What all tests share: types and tensor shapes checked at run time, one thread, the public data, every space in a small version."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import jaxtyping

# before anything imports hwnas; an int is a float, as it is to mypy
jaxtyping.install_import_hook("hwnas", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torch.fx  # noqa: E402
import yaml  # noqa: E402
from hypothesis import settings  # noqa: E402

from hwnas import cost, plugins, resources  # noqa: E402
from hwnas.config import Experiment, load_device, parse  # noqa: E402
from hwnas.front import export_run  # noqa: E402
from hwnas.op import OpSpec  # noqa: E402
from hwnas.profile import DeviceTables, fingerprint  # noqa: E402
from hwnas.run import Run  # noqa: E402
from hwnas.search import run_search  # noqa: E402
from hwnas.space import SearchSpace, Site, Slot, load_space  # noqa: E402
from hwnas.table import Row  # noqa: E402
from hwnas.verify import MemberReport, verify  # noqa: E402

P = ParamSpec("P")
R = TypeVar("R")


def unchecked(function: Callable[P, R]) -> Callable[P, R]:
    """The function with the checks switched off while it runs."""

    @functools.wraps(function)
    def without(*args: P.args, **kwargs: P.kwargs) -> R:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return function(*args, **kwargs)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return without


torch.fx.Tracer.trace = unchecked(torch.fx.Tracer.trace)  # type: ignore[method-assign]  # it traces with stand-ins that are no tensors
for made in (cost._Terms, cost._Pressure):  # they take millions of small steps
    made.__init__ = unchecked(made.__init__)  # type: ignore[method-assign]
torch.set_num_threads(1)
settings.register_profile("hwnas", deadline=None, derandomize=True)
settings.load_profile("hwnas")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public data: $HWNAS_TEST_DATA, or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("HWNAS_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the public test data is not at {folder}; set HWNAS_TEST_DATA")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """The same randomness in every run."""
    return np.random.default_rng(0)


def _needed(name: str) -> type[SearchSpace]:
    missing = {line.name: line.missing for line in plugins.listing("spaces")}[name]
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    found: type[SearchSpace] = plugins.load("spaces", name)
    return found


@pytest.fixture(scope="session", params=plugins.names("spaces"))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    """The small version of every space there is, one after the other."""
    return load_space(request.param, _needed(request.param).small)


@pytest.fixture(scope="session", params=plugins.names("spaces"))
def default_space(request: pytest.FixtureRequest) -> SearchSpace:
    """Every space there is with its default options, one after the other."""
    _needed(request.param)
    return load_space(request.param)


@pytest.fixture(scope="session")
def default_operators(default_space: SearchSpace) -> list[OpSpec]:
    """At most 12 operators of every kind of each of these, spread evenly from the one of fewest channels to the one of most."""
    kinds: dict[str, list[OpSpec]] = {}
    for op in sorted(default_space.operators()):
        kinds.setdefault(op.kind, []).append(op)
    return [kind[i] for kind in kinds.values() for i in sorted({round(x) for x in np.linspace(0, len(kind) - 1, 12)})]


@pytest.fixture
def diamond() -> SearchSpace:
    """A hand-made space of six architectures in which a branch dies for want of a reader or of a feeder.

    stem -> a, always; a -> b by `left` (none, 1x1 or 3x3 convolution); b -> c by `right` (none, skip); a -> c, always;
    c -> output. Without `right` what `left` chose is not used; without `left` what `right` chose is not fed.
    """
    one, three = (OpSpec("conv_bn", 4, 4, 8, 8, kernel=kernel) for kernel in (1, 3))
    skip = OpSpec("identity", 4, 4, 8, 8)
    sites = (
        Site(OpSpec("conv_bn", 3, 4, 8, 8, kernel=3), ("input",), "a"),
        Site(one, ("a",), "b", ((0, 1),)),
        Site(three, ("a",), "b", ((0, 2),)),
        Site(skip, ("a",), "c"),
        Site(skip, ("b",), "c", ((1, 1),)),
        Site(OpSpec("classifier", 4, 2, 8, 8, stride=8), ("c",), "output"),
    )
    slots = (Slot("left", ("none", "conv1", "conv3")), Slot("right", ("none", "skip")))
    return SearchSpace((3, 8, 8), 2, slots, sites, name="diamond")


TINY = """\
seed: 0
device: cpu-1t
data: {name: digits, size: 8, limit: 64}
space: {name: nasbench201, input_size: 8, channels: 1, classes: 10, width: 4, cells: 1}
searcher: {name: nsga2, population: 6}
evaluator: {name: shared, epochs: 1, batch_size: 32}
trials: 12
batch: 4
calibration: {probes: 12}
final: {members: 2, training: {epochs: 1, batch_size: 32}}
"""


@pytest.fixture(scope="session")
def local_fingerprint() -> dict[str, str]:
    """The fingerprint of measurements on `cpu-1t` here."""
    return fingerprint(load_device("cpu-1t"))


def made_up_price(op: OpSpec) -> float:
    """What an operator costs on the made-up machine of `fixed_tables`, ms."""
    return 1e-3 + 2e-6 * resources.macs(op)


@pytest.fixture(scope="session")
def make_up_tables(local_fingerprint: dict[str, str]) -> Callable[[Path, SearchSpace], None]:
    """Writes tables of `cpu-1t` for a space, of its operators and of 16 networks, that stand where this machine's would."""

    def write(root: Path, space: SearchSpace) -> None:
        tables = DeviceTables(root, load_device("cpu-1t"), local_fingerprint)
        operators = tables.operators("latency_ms")
        rows = {op: Row(made_up_price(op), 1e-6, made_up_price(op), made_up_price(op), 9) for op in space.operators()}
        operators.add(rows, local_fingerprint)
        operators.save(tables.folder / "latency_ms.csv")
        networks = tables.networks(space)
        rng = np.random.default_rng(0)
        while len(networks.rows) < 16:
            arch = space.random(rng)
            cost = sum(made_up_price(op) for op in space.lower(arch))
            networks.rows[arch] = Row(cost, 1e-6, cost, cost, 9)
        networks.save(tables.networks_path(space))

    return write


@pytest.fixture(scope="session")
def fixed_tables(make_up_tables: Callable[[Path, SearchSpace], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tables for the space of `TINY`, made up and not measured."""
    root = tmp_path_factory.mktemp("fixed") / "latency_tables"
    make_up_tables(root, parse(Experiment, {"name": "tiny", **yaml.safe_load(TINY)}, "TINY").load_space())
    return root


@pytest.fixture
def search_and_verify(
    make_up_tables: Callable[[Path, SearchSpace], None], tmp_path: Path
) -> Callable[[str], tuple[Run, list[MemberReport]]]:
    """Searches an experiment (YAML) on made-up tables, trains the members, exports them, and verifies them but for their latency."""

    def run(text: str) -> tuple[Run, list[MemberReport]]:
        experiment = parse(Experiment, {"name": "whole", **yaml.safe_load(text)}, "YAML")
        make_up_tables(tmp_path / "tables", experiment.load_space())
        found = run_search(experiment, tmp_path / "run", tables=tmp_path / "tables")
        reports = verify(export_run(found, tables=tmp_path / "tables"))
        return found, [replace(report, checks=tuple(check for check in report.checks if check.name != "latency")) for report in reports]

    return run


@pytest.fixture
def tiny(fixed_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, an empty one but for `tiny.yaml`, an experiment of seconds, and a copy of `fixed_tables`."""
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    shutil.copytree(fixed_tables, tmp_path / "latency_tables")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(fixed_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search of `TINY`, to be copied and not changed."""
    folder = tmp_path_factory.mktemp("finished") / "tiny"
    run_search(parse(Experiment, {"name": "tiny", **yaml.safe_load(TINY)}, "TINY"), folder, tables=fixed_tables)
    return folder
