"""Image data sets as uint8 tensors: three disjoint parts, the normalisation that belongs to them, augmentation, batches.

A loader is a function of keyword-only options that returns a `Dataset`; a configuration names it. Everything is held in memory.
"""

from __future__ import annotations

import importlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, Num, UInt8
from torch import Tensor
from torch.nn import functional

from hwnas.errors import ConfigError, DataError, nearest
from hwnas.plugins import checked_options

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}
CHANNEL_ORDER = {1: "grey", 3: "RGB"}


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, drawn anew for every image; what leaves the image is black.

    Args:
        shift: largest shift along each axis, in whole pixels (pad-and-crop).
        flip: mirror half of the images left to right.
        cutout: side of a black square whose centre lies anywhere, in pixels (arXiv 1708.04552).
        rotate: largest rotation either way, in degrees.
        scale: largest change of size either way, as a share of 1.
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0
    rotate: float = 0.0
    scale: float = 0.0

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, limit in (("shift", math.inf), ("cutout", math.inf), ("rotate", 180.0), ("scale", 0.9)):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ConfigError(f"augmentation: {name} must be between 0 and {limit}, but got {value}")

    def __call__(
        self, images: Num[Tensor, "n channel height width"], generator: torch.Generator
    ) -> Num[Tensor, "n channel height width"]:
        """Changed copies of the images on their device, of the same shape and type; a CPU generator serves every device."""
        n, _, height, width = images.shape

        def uniform() -> Tensor:
            return torch.rand(n, generator=generator, device=generator.device).to(images.device)

        if self.shift or self.flip or self.rotate or self.scale:
            angle = (2 * uniform() - 1) * math.radians(self.rotate)
            zoom = 1 + (2 * uniform() - 1) * self.scale
            mirror = 1 - 2 * (uniform() < 0.5 * self.flip).float()
            right, down = ((uniform() * (2 * self.shift + 1)).floor() - self.shift for _ in range(2))
            cos, sin = angle.cos() / zoom, angle.sin() / zoom
            theta = torch.stack(
                [mirror * cos, mirror * sin * (height / width), right * (2 / width),
                 -sin * (width / height), cos, down * (2 / height)], dim=1,
            ).view(n, 2, 3)  # fmt: skip
            grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
            moved = functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
            images = (moved if images.is_floating_point() else moved.round()).to(images.dtype)
        if self.cutout:
            inside = [
                (torch.arange(side, device=images.device) - (uniform() * side).floor()[:, None] + self.cutout // 2)
                .ge(0).logical_and(torch.arange(side, device=images.device) < 0)
                for side in (height, width)
            ]  # fmt: skip
            images = images.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)
        return images
