"""A module imports only from modules above it: the data flows one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hwnas"
ORDER = """
errors plain plugins op layers space resources quick_onnx spaces/* network supernet feed onnx_torch quantize
device counters worker remote measure energy backends/* table diagram context cost exchange formats/* calibrate profile
checkpoint text data train evaluate tabular pareto features gaussian surrogates searcher evolution controller distribution searchers/*
config workers run search explain export exporters/* verify doctor transfer picture table_chart space_chart compare compare_chart
report front cli __init__
""".split()  # noqa: SIM905
"""Top to bottom = the order of the data flow. A folder's plug-ins share a line and do not import each other."""
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def line(module: str) -> int:
    """Where a module (`cost`, `spaces.nasbench201`) stands in `ORDER`; above all where it stands nowhere."""
    name = module if module in ORDER else f"{module.partition('.')[0]}/*"
    return ORDER.index(name) if name in ORDER else -1


def imported(path: Path) -> set[str]:
    """The hwnas modules that a file imports anywhere in it; `hwnas.__version__` may be had by all."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the module's whole name"
            names = {f"{node.module}.{alias.name}" for alias in node.names} - {"hwnas.__version__"}
            modules = {name for name in names if name.removeprefix("hwnas.") in MODULES}
            found |= modules | ({str(node.module)} if names - modules else set())
    return {"__init__" if name == "hwnas" else name.removeprefix("hwnas.") for name in found if name.partition(".")[0] == "hwnas"}


def test_every_module_has_a_line() -> None:
    missing = [module for module in MODULES if line(module) < 0]
    assert not missing, f"{missing} stand nowhere in ORDER; say where they belong in the flow of the data"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_above(module: str) -> None:
    below = sorted(other for other in imported(MODULES[module]) if line(other) >= line(module))
    assert not below, f"hwnas.{module} must import only from modules above it in ORDER, but imports {', '.join(below)}"
