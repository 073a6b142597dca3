"""A problem with a supernet, on made-up images whose brightness tells their class."""

from __future__ import annotations

from pathlib import Path

import torch

from hwnas import resources
from hwnas.cost import Cost, CostModel, PeakMemory
from hwnas.data import Augmentation, Dataset, Part
from hwnas.evaluate import Objective, SharedWeights
from hwnas.searcher import Problem
from hwnas.space import SearchSpace
from hwnas.train import TrainSettings


def made_up_data(space: SearchSpace, of_class: int = 2) -> Dataset:
    """So many images of each class, the same in all parts."""
    labels = torch.arange(of_class * space.classes) % space.classes
    noise = torch.randint(0, 50, (len(labels), *space.input_shape), generator=torch.Generator().manual_seed(0))
    part = Part((noise + labels.view(-1, 1, 1, 1) * (200 // space.classes)).to(torch.uint8), labels)
    return Dataset("made up", part, part, part, tuple(map(str, range(space.classes))), Augmentation())


def make_problem(
    space: SearchSpace,
    *,
    budgets: dict[str, float] | None = None,
    seed: int = 0,
    data: Dataset | None = None,
    checkpoint: Path | None = None,
    of_class: int = 2,
) -> Problem:
    """Error and multiply-adds; `peak_mb` is a cost too."""
    costs: dict[str, Cost] = {"macs": CostModel(space, resources.macs, metric="macs"), "peak_mb": PeakMemory(space)}
    shared = SharedWeights(space, data or made_up_data(space, of_class), TrainSettings(epochs=1), seed, checkpoint)
    return Problem(space, (Objective("error"), Objective("macs")), costs, budgets or {}, shared=shared)
