"""Pareto fronts and hypervolume of arrays of minimised objectives; pymoo and moocore do the work."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray

from hwnas.errors import RunError

Floats = NDArray[np.float64]


def nondominated(values: Floats) -> NDArray[np.bool_]:
    """Which rows of `values` (n, objective) no other row dominates; of equal rows the first; rows with NaN never."""
    finite = np.isfinite(values).all(1)
    mask = np.zeros(len(values), dtype=np.bool_)
    if finite.any():
        mask[finite] = moocore.is_nondominated(values[finite], keep_weakly=False)
    return mask


def reference_point(values: Floats, margin: float = 0.1) -> Floats:
    """The nadir of the front of `values` (n, objective), moved outwards by `margin` of its range: where hypervolume is counted from.

    Raises:
        RunError: no row is finite.
    """
    front = values[nondominated(values)]
    if not len(front):
        raise RunError(f"none of the {len(values)} trials has finite objectives, so there is no front; look at why training diverges")
    low, high = front.min(0), front.max(0)
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1e-12))
    return np.asarray(high + margin * span)


def hypervolume(values: Floats, reference: Floats) -> float:
    """Volume that the rows of `values` (n, objective) dominate within the box below `reference`; 0 of none."""
    values = values[np.isfinite(values).all(1)]
    inside = values[(values < reference).all(1)]
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0


def hypervolume_history(values: Floats, reference: Floats) -> Floats:
    """Hypervolume after each of the first 1, 2, ... rows of `values` (n, objective)."""
    history = np.zeros(len(values))
    kept = values[:0]
    best = 0.0
    for i, row in enumerate(values):
        if np.isfinite(row).all() and (row < reference).all() and not (kept <= row).all(1).any():
            kept = np.vstack([kept[~(row <= kept).all(1)], row])
            best = hypervolume(kept, reference)
        history[i] = best
    return history


def crowding(values: Floats) -> Floats:
    """Crowding distance of each row of a front (n, objective), infinite at its ends (Deb et al., IEEE TEC 6(2), 2002)."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        span = ordered[-1] - ordered[0]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
    return distance


def best(values: Floats, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` rows of `values` (n, objective), the best first: front after front, of one front the least crowded."""
    left = np.arange(len(values))
    taken: list[int] = []
    while len(left) and len(taken) < most:
        mask = moocore.is_nondominated(values[left], keep_weakly=True)
        front = left[mask]
        taken += front[np.argsort(-crowding(values[front]), kind="stable")].tolist()
        left = left[~mask]
    return np.array(taken[:most], dtype=np.int64)


def spread(values: Floats, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` rows of a front (n, objective) that cover it evenly: the ends, then farthest from those taken."""
    if len(values) <= most:
        return np.arange(len(values))
    low, high = values.min(0), values.max(0)
    scaled = (values - low) / np.where(high > low, high - low, 1)
    taken = [int(scaled[:, -1].argmin())]
    if most > 1:
        taken.append(int(scaled[:, -1].argmax()))
    while len(taken) < most:
        distance = np.linalg.norm(scaled[:, None] - scaled[taken], axis=2).min(1)
        taken.append(int(distance.argmax()))
    return np.sort(np.array(taken[:most]))


def gaps(front: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Disjoint boxes, (low, high) each (box, objective), that fill what `front` does not dominate below `reference`; `low` may be -inf.

    Slab by slab along the last objective; a box goes on through the slabs that do not change it.
    """
    front = front[(front < reference).all(1)]
    if len(reference) == 1:
        return np.full((1, 1), -np.inf), np.array([[min([reference[0], *front[:, 0]])]])
    levels = [-np.inf, *np.unique(front[:, -1]), reference[-1]]
    begun: dict[tuple[tuple[float, ...], tuple[float, ...]], float] = {}
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for level in levels[:-1]:
        low, high = gaps(front[front[:, -1] <= level][:, :-1], reference[:-1])
        here = set(zip(map(tuple, low.tolist()), map(tuple, high.tolist()), strict=True))
        for box in [box for box in begun if box not in here]:
            found.append(((*box[0], begun.pop(box)), (*box[1], level)))
        for box in here:
            begun.setdefault(box, level)
    found += [((*low, start), (*high, levels[-1])) for (low, high), start in begun.items()]
    found.sort()
    return np.array([low for low, _ in found]), np.array([high for _, high in found])
