"""What the README shows works as it stands: the example, and the plug-ins."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import resources
from hwnas.config import available
from hwnas.cost import CostModel
from hwnas.device import Backend, Device, Executable
from hwnas.evaluate import Objective, Trial
from hwnas.network import Network
from hwnas.profile import network_onnx
from hwnas.searcher import Problem, Searcher
from hwnas.space import SearchSpace

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def block(word: str) -> str:
    """The one block of Python in which `word` stands."""
    (found,) = (text for text in BLOCKS if word in text)
    return str(found)


def made(word: str) -> dict[str, Any]:
    """What the block defines, run as a module of its own."""
    module = types.ModuleType(f"readme_{word.strip().split()[-1].lower()}")
    sys.modules[module.__name__] = module
    exec(compile(block(word), f"README.md, {word}", "exec"), module.__dict__)
    return vars(module)


@pytest.fixture(scope="module")
def two_convs() -> SearchSpace:
    space: SearchSpace = made("class TwoConvs")["TwoConvs"](input_size=16, classes=4, width=4)
    return space


@pytest.mark.slow
def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "latency_tables").mkdir()  # of the current folder: what is measured here is written there
    (tmp_path / "example.py").write_text(block("import hwnas\n"), encoding="utf-8")
    ended = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec(open('example.py').read())"],
                           cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "'predicted'" in ended.stdout and "runs/example/export" in ended.stdout
    assert list((tmp_path / "latency_tables" / "cpu-1t").glob("*/networks/mobilenet_v2-*.csv"))
    assert list((tmp_path / "runs" / "example" / "export").glob("m*/model.onnx"))


def test_the_space_is_one(two_convs: SearchSpace) -> None:
    for arch in two_convs.all():
        out = Network(two_convs, arch).eval()(torch.zeros(2, *two_convs.input_shape))
        assert out.shape == (2, 4)
    cost = CostModel(two_convs, resources.macs)
    archs = list(two_convs.all())
    assert len(archs) == 6
    np.testing.assert_allclose(cost.of(archs).numpy(), [sum(map(resources.macs, two_convs.lower(arch))) for arch in archs])


def test_the_searcher_is_one_and_finds_the_best(two_convs: SearchSpace) -> None:
    climb: type[Searcher] = made("class Climb")["Climb"]
    latency = CostModel(two_convs, lambda op: 1e-3 + 1e-8 * resources.macs(op))
    problem = Problem(two_convs, (Objective("latency_ms"),), {"latency_ms": latency})

    def told(searcher: Searcher, rounds: int) -> list[Any]:
        asked = []
        for _ in range(rounds):
            archs = searcher.ask(2)
            searcher.tell([Trial(i, arch, {"latency_ms": float(latency.of([arch])[0])}) for i, arch in enumerate(archs)])
            asked.append(archs)
        return asked

    searcher = climb(problem, np.random.default_rng(0))
    told(searcher, 2)
    fresh = climb(problem, np.random.default_rng(9))
    fresh.restore(searcher.state())
    assert told(fresh, 3) == told(searcher, 3)
    assert searcher.best == latency.cheapest()  # type: ignore[attr-defined]


def test_the_backend_is_one(two_convs: SearchSpace) -> None:
    backend = made("class Reference")["Reference"](Device(backend="reference"))
    assert isinstance(backend, Backend)
    loaded = backend.compile(network_onnx(two_convs, (0, 0)))
    assert isinstance(loaded, Executable)
    loaded.run()
    assert set(backend.fingerprint()) == {"runtime", "runtime_version"}


def test_every_block_is_tested_and_the_files_it_names_exist() -> None:
    assert len(BLOCKS) == 4
    for name in ("docs/architecture.md", "LICENSE", "configs/quickstart.yaml", "hwnas/exporters/onnx.py"):
        assert name not in TEXT or (ROOT / name).exists(), name
    assert {"cpu-1t"} <= available("devices").keys()
