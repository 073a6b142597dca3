"""The little of pydantic that a worker needs, for the host of a remote device, which has Python, numpy and its runtime only.

`hwnas.device` and `hwnas.plugins` take it where pydantic is not installed. Types, unknown keys and numeric bounds are
checked as there; nothing is coerced but whole numbers to float, and lists to tuples.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from copy import copy
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_BOUNDS = {
    "gt": (operator.gt, "greater than"),
    "ge": (operator.ge, "greater than or equal to"),
    "lt": (operator.lt, "less than"),
    "le": (operator.le, "less than or equal to"),
}
ConfigDict = dict


class ValidationError(ValueError):
    """What is wrong with one value, in the form in which pydantic lists it."""

    def __init__(self, where: tuple[str, ...], kind: str, message: str, found: Any = None) -> None:
        super().__init__(message)
        self._problem = {"loc": where, "type": kind, "msg": message, "input": found}

    def errors(self, include_url: bool = False) -> list[dict[str, Any]]:
        """One problem: where (`loc`), what (`type`, `msg`), and what was found (`input`)."""
        return [self._problem]


def Field(**bounds: float) -> dict[str, float]:  # noqa: N802  it stands for pydantic's
    """The bounds of a number."""
    return bounds


class BaseModel:
    """An object whose annotated attributes are given by name, checked."""

    def __init__(self, **given: Any) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if name in given:
                self.__dict__[name] = fitted(given.pop(name), hint, (name,))
            elif not hasattr(type(self), name):
                raise ValidationError((name,), "missing", "field required")
            else:
                self.__dict__[name] = copy(getattr(type(self), name))
        for name, value in given.items():
            raise ValidationError((name,), "extra_forbidden", "there is no such key", value)

    @classmethod
    def model_validate_json(cls, text: str) -> Any:
        """The object that a JSON text describes."""
        return cls(**json.loads(text))


def create_model(name: str, *, __config__: Any = None, **fields: tuple[Any, Any]) -> type[BaseModel]:
    """A model of these fields, each an annotation and a default, or `...` where there is none."""
    defaults = {field: default for field, (_, default) in fields.items() if default is not ...}
    return type(name, (BaseModel,), {"__annotations__": {field: hint for field, (hint, _) in fields.items()}, **defaults})


def fitted(value: Any, hint: Any, where: tuple[str, ...] = ()) -> Any:
    """The value as its annotation wants it.

    Raises:
        ValidationError: it is of another type or out of bounds.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = fitted(value, arguments[0], where)
        for name, bound in ((name, bound) for bounds in arguments[1:] if isinstance(bounds, dict) for name, bound in bounds.items()):
            if not _BOUNDS[name][0](value, bound):
                raise ValidationError(where, name, f"input should be {_BOUNDS[name][1]} {bound}", value)
        return value
    if origin in (Union, UnionType):
        for argument in arguments:
            try:
                return fitted(value, argument, where)
            except ValidationError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif isclass(hint) and issubclass(hint, BaseModel):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return hint(**value)
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(fitted(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {fitted(key, arguments[0], where): fitted(item, arguments[1], where) for key, item in value.items()}
    elif isclass(origin) and isinstance(value, list) and issubclass(list, origin):
        return [fitted(item, arguments[0], where) for item in value]
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is None or hint is NoneType:
        if value is None:
            return value
    elif isclass(hint) and isinstance(value, hint) and isinstance(value, bool) <= (hint is bool or hint is object):
        return value
    raise ValidationError(where, "type", f"input should be a valid {getattr(hint, '__name__', hint)}", value)
