"""Plug-ins by file name: a dropped file is found, a missing package hurts nobody, a misspelt option is an error."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import hwnas.spaces
from hwnas import plugins
from hwnas.errors import ConfigError, PluginError
from hwnas.space import load_space

GOOD = '''"""A line: one convolution or none at all.

More words.
"""

from hwnas.op import OpSpec
from hwnas.space import SearchSpace, Site, Slot


class DroppedSpace(SearchSpace):
    def __init__(self, *, width: int = 4) -> None:
        site = Site(OpSpec("conv_bn", 3, width, 8, 8), ("input",), "output", ((0, 0),))
        super().__init__((3, 8, 8), width, (Slot("op", ("conv", "none")),), (site,))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `hwnas/spaces` to drop files in."""
    spaces = tmp_path / "spaces"
    spaces.mkdir()
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    monkeypatch.setattr(hwnas.spaces, "__path__", [str(spaces)])
    return spaces


def entry_points(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """As if a package had been installed with this entry point."""
    point = EntryPoint(name, value, "hwnas.spaces")
    monkeypatch.setattr(plugins, "entry_points", lambda group: (point,) if group == point.group else ())


def test_a_dropped_file_is_a_plugin(folder: Path) -> None:
    (folder / "dropped_space.py").write_text(GOOD)
    (folder / "_private.py").write_text("raise RuntimeError")
    assert plugins.names("spaces") == ["dropped_space"]
    assert plugins.listing("spaces") == [plugins.Listing("dropped_space", "A line: one convolution or none at all.", ())]
    space = load_space("dropped_space", {"width": 6})
    assert (space.name, space.options, space.classes) == ("dropped_space", {"width": 6}, 6)


@pytest.mark.parametrize(
    "line", ['REQUIRES = ("json", "no_such_package", "no.such.module")', 'REQUIRES: tuple[str, ...] = ("no_such_package",)']
)
def test_a_missing_package_is_named_and_nothing_is_imported(folder: Path, line: str) -> None:
    (folder / "needy.py").write_text(f'"""Needs much."""\n{line}\nraise RuntimeError("imported")\n')
    (listed,) = plugins.listing("spaces")
    assert listed.summary == "Needs much."
    assert "no_such_package" in listed.missing
    assert "json" not in listed.missing
    with pytest.raises(PluginError, match="needy needs no_such_package.*pip install no_such_package"):
        plugins.load("spaces", "needy")


def test_a_file_must_hold_its_class(folder: Path) -> None:
    (folder / "empty_file.py").write_text("from hwnas.space import SearchSpace as EmptyFile\n")
    with pytest.raises(PluginError, match="must hold a class whose lower-cased name is 'emptyfile'"):
        plugins.load("spaces", "empty_file")


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_file_of_ours_describes_itself_and_loads(kind: str) -> None:
    for line in plugins.listing(kind):
        assert line.summary.endswith((".", ")", ":")) or len(line.summary) > 10, line
        if not line.missing:
            assert plugins.load(kind, line.name).__module__ == f"hwnas.{kind}.{line.name}"


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(PluginError, match="no space called 'mobilnet_v2'; did you mean 'mobilenet_v2'"):
        plugins.load("spaces", "mobilnet_v2")
    with pytest.raises(PluginError, match="kind of plug-in called 'space'; did you mean 'spaces'"):
        plugins.names("space")
    with pytest.raises(PluginError, match="no space called 'qqq'; known: "):
        load_space("qqq")


def test_options_are_checked_and_completed() -> None:
    found = plugins.options("spaces", "nasbench201", {"cells": 2})
    assert found == {"input_size": 32, "channels": 3, "classes": 10, "width": 16, "cells": 2}
    with pytest.raises(ConfigError, match="space 'nasbench201' has no option 'cell'; did you mean 'cells'"):
        plugins.options("spaces", "nasbench201", {"cell": 2})
    with pytest.raises(ConfigError, match="space 'nasbench201': cells: input should be a valid integer.*but got 'many'"):
        plugins.options("spaces", "nasbench201", {"cells": "many"})
    with pytest.raises(ConfigError, match="cells: input should be greater than or equal to 1, but got 0"):
        plugins.options("spaces", "nasbench201", {"cells": 0})
    with pytest.raises(ConfigError, match=r"stages\.0\.width: extra inputs are not permitted"):
        plugins.options("spaces", "mobilenet_v2", {"stages": [{"widths": [8], "width": 8}]})


def test_context_is_positional_and_only_keywords_are_options() -> None:
    def target(context: int, *, size: int, name: str = "x") -> None:
        pass

    assert plugins.checked_options(target, {"size": 3}, "it") == {"size": 3, "name": "x"}
    with pytest.raises(ConfigError, match="it has no option 'context'"):
        plugins.checked_options(target, {"size": 3, "context": 1}, "it")
    with pytest.raises(ConfigError, match=r"it: size: field required$"):
        plugins.checked_options(target, {}, "it")


def test_entry_points_bring_plugins_in(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, "third_party", "hwnas.spaces.nasbench201:NASBench201")
    assert plugins.names("spaces") == sorted([*plugins._files("spaces"), "third_party"])
    assert plugins.Listing("third_party", "from hwnas.spaces.nasbench201:NASBench201", ()) in plugins.listing("spaces")
    assert load_space("third_party", {"cells": 1}).name == "third_party"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hwnas.op:nothing", "cannot be imported"),
        ("no_such_package.x:Y", "cannot be imported"),
        ("hwnas.plugins:names", "must name a class"),
    ],
)
def test_entry_points_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    entry_points(monkeypatch, f"broken_{abs(hash(value))}", value)
    with pytest.raises(PluginError, match=message):
        plugins.load("spaces", f"broken_{abs(hash(value))}")
