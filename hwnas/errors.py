"""Every error a user can meet: what must hold, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwnasError(Exception):
    """The root of the errors that are the user's to mend; the command line prints them in one sentence, exit code 2."""


class ConfigError(HwnasError, ValueError):
    """A configuration or an argument that cannot be meant."""


class PluginError(HwnasError, LookupError):
    """A space, backend, searcher or exporter that does not exist or cannot be used here."""


class SpaceError(HwnasError, ValueError):
    """A search space or an architecture that breaks the rules of `hwnas.space`."""


class TableError(HwnasError, ValueError):
    """A lookup table that cannot be read or believed."""


class MissingPriceError(TableError, KeyError):
    """An operator that the table has no row for."""

    __str__ = Exception.__str__


class FingerprintError(TableError):
    """Numbers of another machine, runtime or precision, which never mix."""


class BudgetError(HwnasError, ValueError):
    """A budget that no architecture of the space keeps."""


class DeviceError(HwnasError):
    """A device that cannot be reached or cannot run what it was given."""


class WorkerLostError(DeviceError):
    """A worker process that died or hung; what it had in hand is the culprit."""


class ConnectionLostError(HwnasError):
    """A remote device whose connection was lost and could not be had again; no model's fault."""


class DataError(HwnasError, ValueError):
    """A data set that is not what the configuration says."""


class RunError(HwnasError):
    """A run's folder, database or checkpoint that cannot be used."""


class ExportError(HwnasError):
    """A model file that does not do what its network does."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the likely meaning first, then all that is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names) or "none"
    return f"did you mean {close[0]!r}? (known: {listed})" if close else f"known: {listed}"
