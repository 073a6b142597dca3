"""Plug-ins by file name: `hwnas/<kind>/<name>.py` holds the class whose lower-cased name is `name` without underscores.

Nothing is registered and nothing is imported before it is asked for, so a runtime that is not installed hurts nobody.
A third party's plug-in comes in through an entry point `name = "package.module:Class"` of the group `hwnas.<kind>`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from hwnas.errors import ConfigError, PluginError, nearest

KINDS = ("spaces", "backends", "searchers", "exporters", "formats")
ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Listing:
    """What can be said of a plug-in without importing it."""

    name: str
    summary: str
    missing: tuple[str, ...]
    precisions: tuple[str, ...] = ()
    """What a backend's `PRECISIONS` says that it can compute in."""


def _files(kind: str) -> dict[str, Path]:
    if kind not in KINDS:
        raise PluginError(f"there is no kind of plug-in called {kind!r}; {nearest(kind, KINDS)}")
    return {path.stem: path for path in sorted((ROOT / kind).glob("*.py")) if not path.stem.startswith("_")}


def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"hwnas.{kind}")}


def names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind, sorted."""
    return sorted({*_files(kind), *_entry_points(kind)})


def listing(kind: str) -> list[Listing]:
    """One line for every plug-in, read from its file's docstring, `REQUIRES` and `PRECISIONS` without importing it."""
    lines = []
    for name in names(kind):
        path = _files(kind).get(name)
        if path is None:
            point = _entry_points(kind)[name]
            lines.append(Listing(name, f"from {point.value}", ()))
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        summary = (ast.get_docstring(tree) or "").partition("\n")[0]
        missing = missing_packages(_constant(tree, "REQUIRES"))
        lines.append(Listing(name, summary, missing, _constant(tree, "PRECISIONS")))
    return lines


def constant(kind: str, name: str, constant: str) -> tuple[str, ...]:
    """The words that a plug-in's file assigns to that name, without importing it; none where it does not, or is no file of ours."""
    path = _files(kind).get(name)
    return () if path is None else _constant(ast.parse(path.read_text(encoding="utf-8")), constant)


def missing_packages(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the packages that cannot be imported here (nothing is imported to find out); `a or b` needs either."""
    return tuple(package for package in packages if not any(map(_importable, package.split(" or "))))


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of `a.b` where there is no `a`
        return False


def _constant(tree: ast.Module, name: str) -> tuple[str, ...]:
    """The words that a file assigns to the name at its top level; none where it does not."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return tuple(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return ()


@cache
def load(kind: str, name: str) -> type[Any]:
    """The plug-in's class.

    Raises:
        PluginError: no such plug-in, a package it needs is not installed, or its file holds no class of that name.
    """
    files = _files(kind)
    if name not in files:
        points = _entry_points(kind)
        if name not in points:
            raise PluginError(f"there is no {kind.removesuffix('s')} called {name!r}; {nearest(name, names(kind))}")
        try:
            found = points[name].load()
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{name} comes from {points[name].value!r}, which cannot be imported: {error}") from None
        if not inspect.isclass(found):
            raise PluginError(f"the entry point {points[name].value!r} of hwnas.{kind} must name a class")
        return found
    tree = ast.parse(files[name].read_text(encoding="utf-8"))
    missing = missing_packages(_constant(tree, "REQUIRES"))
    if missing:
        raise PluginError(f"{name} needs {', '.join(missing)}: pip install {' '.join(one.partition(' or ')[0] for one in missing)}")
    module = importlib.import_module(f"hwnas.{kind}.{name}")
    wanted = name.replace("_", "").lower()
    for attribute, value in vars(module).items():
        if inspect.isclass(value) and attribute.lower() == wanted and value.__module__ == module.__name__:
            return value
    raise PluginError(f"{files[name]} must hold a class whose lower-cased name is {wanted!r}, but holds none")


def options(kind: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Every keyword-only parameter of the plug-in's constructor, checked against its annotation, defaults filled in.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    return checked_options(load(kind, name), given, f"{kind.removesuffix('s')} {name!r}")


def checked_options(target: Any, given: dict[str, Any], what: str) -> dict[str, Any]:
    """`given` checked against the keyword-only parameters of the class or function `target`; `what` names it in errors."""
    try:
        import pydantic
    except ImportError:  # a worker on a remote device
        from hwnas import plain as pydantic  # type: ignore[no-redef]

    function = target.__init__ if inspect.isclass(target) else target
    signature = inspect.signature(function, eval_str=True)
    fields: dict[str, Any] = {
        parameter.name: (
            parameter.annotation,
            ... if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for parameter in signature.parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in given:
        if key not in fields:
            raise ConfigError(f"{what} has no option {key!r}; {nearest(key, fields)}")
    settings = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    model = pydantic.create_model("Options", __config__=settings, **fields)
    try:
        parsed = model(**given)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{what}: {first_problem(error)}") from None
    return {key: getattr(parsed, key) for key in fields}


def first_problem(error: Any) -> str:
    """The first complaint of a pydantic ValidationError as one sentence: where, what is wrong, what was found."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the value"
    found = "" if problem["type"] == "missing" else f", but got {problem['input']!r}"
    return f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{found}"


def build(kind: str, name: str, given: dict[str, Any], *context: Any) -> Any:
    """An instance of the plug-in, made of positional `context` and checked options."""
    return load(kind, name)(*context, **options(kind, name, given))
