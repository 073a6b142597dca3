"""What a controller's states know of the architectures that it writes: our form of the metrics of Adam and Lorraine (arXiv 1904.00438).

They are taken from a run's checkpoint, for each of the rewards that the controller serves.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hwnas import plugins
from hwnas.checkpoint import part
from hwnas.controller import Controller, ControllerSearcher, Form, Reading, make_controller
from hwnas.errors import RunError
from hwnas.run import Run
from hwnas.space import Architecture, SearchSpace

Distances = Float[np.ndarray, "n n"]
SAMPLES = 1000
"""Architectures drawn for the history information and for the probe; half of them are held out."""
DISTINCT = 200
"""Distinct architectures among whose pairs distances are compared."""
PERMUTATIONS = 999
PREFIXES, COMPLETIONS = 20, 50


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over all pairs, and the share of permutations that correlate as much (Mantel's test, one-sided)."""

    rho: float
    p_value: float


@dataclass(frozen=True)
class SlotReport:
    """One slot: its entropy as a share of the uniform one's, what it takes from earlier choices (bits), and what the probe reads."""

    slot: str
    entropy: float
    history_bits: float
    probe: float
    majority: float


@dataclass(frozen=True)
class Explanation:
    """The metrics for one reward, of which `weights` are those of quality and of each cost.

    `correlations` are between the cosine distance of last states and, by name, the share of slots that differ, the
    Jaccard distance of the sites that run, the difference in depth, and for what was evaluated the difference of the first measured
    objective; None where a distance is the same for all pairs. `within` and `between` are the shares of equal choices after the
    prefix, of two completions of one state and of two states.
    """

    weights: list[float]
    entropy: float
    correlations: dict[str, Correlation | None]
    within: float
    between: float
    slots: list[SlotReport]

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def explain_run(run: Run, seed: int = 0) -> list[Explanation]:
    """Reads the controller of a run.

    Raises:
        RunError: the run has no checkpoint yet, or its searcher has no controller.
    """
    saved = run.load_searcher()
    if saved is None:
        raise RunError(f"{run.folder} has no checkpoint of its searcher yet; finish it with `hwnas search`")
    tensors, values = saved[0]
    if "controller" not in values:
        classes = {line.name: plugins.load("searchers", line.name) for line in plugins.listing("searchers") if not line.missing}
        known = ", ".join(name for name, found in classes.items() if issubclass(found, ControllerSearcher))
        raise RunError(f"hwnas explain reads the controllers of {known}, but {run.folder} was searched by {run.experiment.searcher.name}")
    space = run.experiment.load_space()
    generator = torch.Generator().manual_seed(seed)
    form = Form(**{**values["controller"], "prefer": tuple(values["controller"]["prefer"])})
    controller = make_controller(space, form, generator)
    controller.load_state_dict(part(tensors, "controller"))
    told = {trial.arch: trial.values for trial in run.trials(space)}
    name = next((name for name in run.experiment.objectives if all(name in found for found in told.values())), "")
    worth = {arch: found[name] for arch, found in told.items() if name and np.isfinite(found[name])}
    return [explain(space, controller, turn, weights, worth, generator) for turn, weights in enumerate(tensors["weights"].tolist())]


@torch.no_grad()
def explain(
    space: SearchSpace,
    controller: Controller,
    turn: int,
    weights: list[float],
    worth: dict[Architecture, float],
    generator: torch.Generator,
) -> Explanation:
    """The metrics of one of a controller's policies; `worth` is what evaluated architectures differ by."""
    reading = controller.sample(torch.full((SAMPLES,), turn), generator)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    entropy = reading.entropy.mean(0) / torch.tensor(space.num_choices).log().clamp_min(1e-12)
    correlations = correlate(space, controller, turn, worth, reading, rng)
    within, between = identical_state(controller, turn, generator)
    slots = [
        SlotReport(slot.name, float(share), bits, *probe(reading.state.chunk(2, -1)[0], column, rng))
        for slot, share, bits, column in zip(space.slots, entropy, history_bits(reading).tolist(), reading.archs.T, strict=True)
    ]
    total = float(reading.entropy.sum(1).mean() / torch.tensor(space.num_choices).log().sum().clamp_min(1e-12))
    return Explanation(weights, total, correlations, within, between, slots)


def correlate(
    space: SearchSpace, controller: Controller, turn: int, worth: dict[Architecture, float], reading: Reading, rng: np.random.Generator
) -> dict[str, Correlation | None]:
    """How distances of last states go with distances of the architectures, over the first distinct draws and over what was evaluated."""
    drawn = list(dict.fromkeys(map(tuple, reading.archs.tolist())))[:DISTINCT]
    hidden = cosine_distances(controller(torch.full((len(drawn),), turn), torch.tensor(drawn)).state)
    found = {name: mantel(hidden, distances, PERMUTATIONS, rng) for name, distances in structural_distances(space, drawn).items()}
    evaluated = list(worth)[-DISTINCT:]
    if len(evaluated) > 2:
        values = np.array([worth[arch] for arch in evaluated])
        hidden = cosine_distances(controller(torch.full((len(evaluated),), turn), torch.tensor(evaluated)).state)
        found["value"] = mantel(hidden, np.abs(values[:, None] - values), PERMUTATIONS, rng)
    return found


def cosine_distances(states: Float[Tensor, "n state"]) -> Distances:
    """1 - cosine of every two states."""
    unit = torch.nn.functional.normalize(states.double(), dim=1)
    return np.asarray((1 - unit @ unit.T).clamp_min(0).numpy())


def structural_distances(space: SearchSpace, archs: Sequence[Architecture]) -> dict[str, Distances]:
    """Share of slots that differ, Jaccard distance of the sites that run, difference of the longest paths, for every two."""
    rows = np.array(archs)
    slots = (rows[:, None] != rows).mean(2)
    runs = space.alive_in(rows).T.astype(float)
    both = runs @ runs.T
    either = runs.sum(1)[:, None] + runs.sum(1) - both
    depths = np.array([depth(space, arch) for arch in archs])
    return {"slots": slots, "sites": 1 - both / np.maximum(either, 1), "depth": np.abs(depths[:, None] - depths).astype(float)}


def depth(space: SearchSpace, arch: Architecture) -> int:
    """Steps on the longest path of the network."""
    found = {space.input: 0}
    for site in space.steps(arch):
        deepest = max(found.get(node, 0) for node in site.inputs) + 1
        found[site.output] = max(found.get(site.output, 0), deepest)
    return found.get(space.output, 0)


def mantel(one: Distances, other: Distances, permutations: int, rng: np.random.Generator) -> Correlation | None:
    """Spearman's correlation of two distance matrices over all pairs, tested by permuting the objects of one (Mantel 1967)."""
    n = len(one)
    pairs = np.triu_indices(n, 1)
    if n < 3 or np.ptp(one[pairs]) < 1e-12 or np.ptp(other[pairs]) < 1e-12:
        return None
    ranked = []
    for matrix in (one, other):
        ranks = rankdata(matrix[pairs])
        full = np.zeros((n, n))
        full[pairs] = (ranks - ranks.mean()) / ranks.std()
        ranked.append(full + full.T)

    def rho(order: NDArray[np.int64]) -> float:
        return float((ranked[0] * ranked[1][np.ix_(order, order)]).sum() / (n * (n - 1)))

    found = rho(np.arange(n))
    as_much = sum(rho(rng.permutation(n)) >= found for _ in range(permutations))
    return Correlation(found, (1 + as_much) / (1 + permutations))


def history_bits(reading: Reading) -> Float[Tensor, " slot"]:
    """Entropy of each slot's mean distribution less the mean of its entropies, bits: 0 where the choices before do not matter."""
    mean = reading.log_probs.exp().mean(0)
    bits: Tensor = (torch.special.entr(mean).sum(-1) - reading.entropy.mean(0)) / np.log(2)
    return bits.clamp_min(0)


def probe(states: Float[Tensor, "n hidden"], choices: Int[Tensor, " n"], rng: np.random.Generator) -> tuple[float, float]:
    """Accuracy, on the second half, of a linear classifier of the choice from the state; and of always naming the first half's majority."""
    x, y = states.numpy(), choices.numpy()
    half = len(y) // 2
    majority = float((y[half:] == np.bincount(y[:half]).argmax()).mean())
    if len(np.unique(y[:half])) < 2:
        return majority, majority
    scale = x[:half].std(0) + 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=100, random_state=int(rng.integers(2**31))).fit(x[:half] / scale, y[:half])
    return float(fitted.score(x[half:] / scale, y[half:])), majority


def identical_state(controller: Controller, turn: int, generator: torch.Generator) -> tuple[float, float]:
    """Shares of equal choices in the second half of the picks: of two completions of one prefix, and of completions of two prefixes."""
    picked = [pick.slot for pick in controller.picks]
    begun = len(picked) // 2
    prefixes = controller.sample(torch.full((PREFIXES,), turn), generator).archs[:, picked[:begun]]
    turns = torch.full((PREFIXES * COMPLETIONS,), turn)
    written = controller.sample(turns, generator, prefixes.repeat_interleave(COMPLETIONS, 0)).archs[:, picked[begun:]]
    shares = torch.nn.functional.one_hot(written).double().view(PREFIXES, COMPLETIONS, len(picked) - begun, -1).mean(1)
    agree = torch.einsum("asc,bsc->abs", shares, shares).mean(-1)
    same = ((agree.diagonal() * COMPLETIONS - 1) / (COMPLETIONS - 1)).mean()  # without a completion's agreement with itself
    other = (agree.sum() - agree.diagonal().sum()) / (PREFIXES * (PREFIXES - 1))
    return float(same), float(other)
