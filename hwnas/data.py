"""Data sets as tensors in memory, of images (uint8) or windows of text: three disjoint parts, normalisation, augmentation, batches.

A loader is a function of keyword-only options that returns a `Dataset`; a configuration names it.
"""

from __future__ import annotations

import importlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Num, UInt8
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hwnas import text as texts
from hwnas.errors import ConfigError, DataError, nearest
from hwnas.plugins import checked_options

CHANNEL_ORDER = {1: "grey", 3: "RGB"}
IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, drawn anew for every image; what comes in from outside is black.

    Args:
        shift: largest shift along each axis, in whole pixels (pad-and-crop).
        flip: mirror half of the images left to right.
        cutout: side of a black square whose centre lies anywhere, in pixels (arXiv 1708.04552).
        rotate: largest rotation either way, in degrees.
        scale: largest change of size either way, as a share of 1.

    Raises:
        ConfigError: a value out of range.
    """

    shift: int = 0
    flip: bool = False
    cutout: int = 0
    rotate: float = 0.0
    scale: float = 0.0

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, largest in (("shift", math.inf), ("cutout", math.inf), ("rotate", 180.0), ("scale", 0.9)):
            value = getattr(self, name)
            if not 0 <= value <= largest:
                raise ConfigError(f"augmentation: {name} must be between 0 and {largest}, but got {value}")

    def __call__(self, images: Num[Tensor, "n channel height width"], generator: torch.Generator) -> Num[Tensor, "n channel height width"]:
        """Changed copies on the same device, of the same shape and type; a generator of the CPU serves every device."""
        n, _, height, width = images.shape

        def uniform(low: float, high: float) -> Tensor:
            return (low + (high - low) * torch.rand(n, generator=generator, device=generator.device)).to(images.device)

        def whole(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (n,), generator=generator, device=generator.device).to(images.device)

        def band(side: int) -> Tensor:
            offset = torch.arange(side, device=images.device) - whole(0, side - 1)[:, None] + self.cutout // 2
            return (offset >= 0) & (offset < self.cutout)

        if self.shift or self.flip or self.rotate or self.scale:
            angle = uniform(-math.radians(self.rotate), math.radians(self.rotate))
            zoom = uniform(1 - self.scale, 1 + self.scale)
            mirror = 1 - 2 * whole(0, 1) if self.flip else torch.ones_like(zoom)
            right, down = (whole(-self.shift, self.shift) * (2 / side) for side in (width, height))
            cos, sin = angle.cos() / zoom, angle.sin() / zoom
            across = torch.stack([mirror * cos, mirror * sin * (height / width), right], dim=1)
            along = torch.stack([-sin * (width / height), cos, down], dim=1)
            grid = functional.affine_grid(torch.stack([across, along], dim=1), list(images.shape), align_corners=False)
            moved = functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
            images = (moved if images.is_floating_point() else moved.round()).to(images.dtype)
        if self.cutout:
            images = images.masked_fill(band(height)[:, None, :, None] & band(width)[:, None, None, :], 0)
        return images


@dataclass(frozen=True, eq=False)
class Part:
    """Images (n, channel, height, width), 0 to 255, and the class index of each.

    Raises:
        DataError: no image, another shape or type, more or fewer labels than images, a negative label.
    """

    images: UInt8[Tensor, "n channel height width"]
    labels: Int64[Tensor, " n"]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in CHANNEL_ORDER or not images.numel():
            raise DataError(
                "images must be uint8 of shape (n, 1 or 3 channels, height, width) and not empty, "
                f"but are {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"{len(images)} images need as many int64 labels, not {labels.dtype} {tuple(labels.shape)}")
        if labels.min() < 0:
            raise DataError(f"labels must be 0 or more, but the smallest is {labels.min()}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Windows(Part):
    """Windows of tokens (n, 1, steps, 1), and for every token the one that follows it.

    Raises:
        DataError: no window, another shape or type, a negative token.
    """

    images: Int32[Tensor, "n 1 steps 1"]
    labels: Int64[Tensor, "n steps"]

    def __post_init__(self) -> None:
        tokens, labels = self.images, self.labels
        if tokens.ndim != 4 or tokens.dtype != torch.int32 or (tokens.shape[1], tokens.shape[3]) != (1, 1) or not tokens.numel():
            raise DataError(f"tokens must be int32 of shape (n, 1, steps, 1) and not empty, but are {tokens.dtype} {tuple(tokens.shape)}")
        if labels.dtype != torch.int64 or labels.shape != (len(tokens), tokens.shape[2]):
            raise DataError(f"tokens {tuple(tokens.shape)} need an int64 label each, not {labels.dtype} {tuple(labels.shape)}")
        if min(int(tokens.min()), int(labels.min())) < 0:
            raise DataError(f"tokens must be 0 or more, but the smallest is {min(int(tokens.min()), int(labels.min()))}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint parts: networks learn from `train`, are chosen by `valid`, and `test` is touched once, at the end.

    Args:
        resize: one sentence on how a raw image becomes one of `image_shape`.
        augment: what training does to its images.

    Raises:
        DataError: parts of different image shapes, labels beyond the classes, a class without an image in some part.
    """

    name: str
    train: Part
    valid: Part
    test: Part
    class_names: tuple[str, ...]
    augment: Augmentation = field(default_factory=Augmentation)
    resize: str = "none"

    gives: ClassVar[str] = "images"
    """What networks learn from; a space says in `reads` what its networks take."""

    def __post_init__(self) -> None:
        for where in ("train", "valid", "test"):
            part: Part = getattr(self, where)
            shape = tuple(part.images.shape[1:])
            if shape != self.image_shape:
                raise DataError(f"{self.name}: {where} images must be {self.image_shape} as in train, but are {shape}")
            if part.labels.max() >= self.num_classes:
                raise DataError(
                    f"{self.name}: {where} labels must be below {self.num_classes}, the number of classes, "
                    f"but the largest is {part.labels.max()}"
                )
            counts = torch.bincount(part.labels, minlength=self.num_classes)
            if counts.min() == 0:
                raise DataError(
                    f"{self.name}: class {self.class_names[int(counts.argmin())]!r} has no image in the {where} part; "
                    "give it images or this part a larger share"
                )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""
        channel, height, width = self.train.images.shape[1:]
        return channel, height, width

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def _moments(self) -> Float[Tensor, "2 channel"]:
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in self.train.images.unbind(1)])
        shares = counts.double() / counts.sum(1, keepdim=True)
        mean = shares @ levels
        return torch.stack([mean, (shares @ levels**2 - mean**2).clamp_min(0).sqrt()])

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the train part, white being 1."""
        return tuple(self._moments[0].tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the train part, white being 1; 1 for a channel that never changes."""
        return tuple(value if value > 1e-6 else 1.0 for value in self._moments[1].tolist())

    def normalise(self, images: UInt8[Tensor, "n channel height width"]) -> Float[Tensor, "n channel height width"]:
        """(images / 255 - mean) / std in float32, on the images' device: what a network reads."""
        mean, std = (torch.tensor(m, device=images.device).view(-1, 1, 1) for m in (self.mean, self.std))
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def preprocessing(self) -> dict[str, Any]:
        """What a user of the exported network must do to an image, ready for JSON: x = (raw * scale - mean) / std."""
        channel, height, width = self.image_shape
        return {
            "layout": "NCHW", "channel": channel, "height": height, "width": width, "dtype": "float32",
            "channel_order": CHANNEL_ORDER[channel], "resize": self.resize, "raw_range": [0, 255],
            "scale": 1 / 255, "mean": list(self.mean), "std": list(self.std), "class_names": list(self.class_names),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Text(Dataset):
    """Windows of text: a class is a token of the vocabulary, and every token of a window has a label, the token that follows it.

    Raises:
        DataError: parts of windows of different lengths, tokens beyond the vocabulary.
    """

    level: texts.Level = "word"

    gives: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        for where in ("train", "valid", "test"):
            part: Part = getattr(self, where)
            if tuple(part.images.shape[1:]) != self.image_shape:
                raise DataError(
                    f"{self.name}: {where} windows must be {self.image_shape} as in train, but are {tuple(part.images.shape[1:])}"
                )
            largest = max(int(part.images.max()), int(part.labels.max()))
            if largest >= self.num_classes:
                raise DataError(
                    f"{self.name}: {where} tokens must be below {self.num_classes}, the vocabulary's size, but one is {largest}"
                )

    @property
    def mean(self) -> tuple[float, ...]:
        """0: tokens are numbers of words, which nobody normalises."""
        return (0.0,)

    @property
    def std(self) -> tuple[float, ...]:
        """1, for the same reason."""
        return (1.0,)

    def normalise(self, images: Int32[Tensor, "n 1 steps 1"]) -> Float[Tensor, "n 1 steps 1"]:
        """The tokens as float32, what a network reads."""
        return images.to(torch.float32)

    def preprocessing(self) -> dict[str, Any]:
        """How a user of the exported network numbers the tokens of a line; the vocabulary stands in the manifest's `classes`."""
        _, steps, _ = self.image_shape
        return {
            "layout": "NCHW", "channel": 1, "height": steps, "width": 1, "dtype": "float32", "level": self.level,
            "raw_range": [0, self.num_classes - 1], "scale": 1.0, "mean": [0.0], "std": [1.0],
            "unknown": texts.UNKNOWN, "end_of_line": texts.END,
        }  # fmt: skip


def batches(part: Part, size: int, generator: torch.Generator) -> Iterator[Int64[Tensor, " batch"]]:
    """Indices of all images, shuffled, `size` at a time; a last batch of one is left out (BatchNorm needs two)."""
    if size < 2:
        raise ConfigError(f"a batch must hold at least 2 images, but got {size}")
    order = torch.randperm(len(part), generator=generator, device=generator.device).cpu()
    yield from (batch for batch in torch.split(order, size) if len(batch) > 1)


def stratified_split(labels: Int64[Tensor, " n"], shares: Sequence[float], seed: int) -> list[Int64[Tensor, " m"]]:
    """Disjoint indices, one tensor a share, with every class in the same proportions to within one image.

    The classes are interleaved, so that the beginning of each tensor is stratified too.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen: list[list[Tensor]] = [[] for _ in shares]
    ranks: list[list[Tensor]] = [[] for _ in shares]
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        cuts = [round(share * len(members)) for share in accumulate(shares, initial=0.0)]
        for piece, (start, stop) in enumerate(pairwise(cuts)):
            chosen[piece].append(members[start:stop])
            ranks[piece].append(torch.arange(stop - start) / max(stop - start, 1))
    return [torch.cat(c)[torch.argsort(torch.cat(r), stable=True)] for c, r in zip(chosen, ranks, strict=True)]


@dataclass(frozen=True, eq=False)
class _Source:
    """Where images come from: all the labels, and a function from indices to uint8 images."""

    labels: Tensor
    read: Callable[[Tensor], Tensor]


def _dataset(
    name: str, class_names: Sequence[str], sources: Mapping[str, _Source], *, valid_share: float, test_share: float,
    seed: int, limit: int | None, augment: Augmentation | None, resize: str,
) -> Dataset:  # fmt: skip
    """Splits parts without a source off train, reads the images that are wanted, sets the standard augmentation."""
    if not (0 < valid_share < 1 and 0 < test_share < 1 and valid_share + test_share < 1):
        raise ConfigError(
            "valid_share and test_share must be above 0 and together below 1, "
            f"but got {valid_share} and {test_share}"
        )  # fmt: skip
    if limit is not None and limit < len(class_names):
        raise ConfigError(f"limit must be at least {len(class_names)}, an image of every class, but got {limit}")
    split_off = {part: share for part, share in (("valid", valid_share), ("test", test_share)) if part not in sources}
    pieces = stratified_split(sources["train"].labels, [1.0 - sum(split_off.values()), *split_off.values()], seed)
    indices = dict(zip(["train", *split_off], pieces, strict=True))
    parts = {}
    for part in ("train", "valid", "test"):
        source = sources.get(part, sources["train"])
        index = indices[part] if part in indices else stratified_split(source.labels, [1.0], seed)[0]
        if len(index) == 0:
            raise DataError(f"{name}: no image is left for {part} out of {len(source.labels)}; change the shares")
        parts[part] = Part(source.read(index[:limit]), source.labels[index[:limit]])
    if augment is None:
        augment = Augmentation(shift=parts["train"].images.shape[-1] // 8, flip=True)
    return Dataset(name, parts["train"], parts["valid"], parts["test"], tuple(class_names), augment, resize)


def _resized(images: Tensor, size: int) -> Tensor:
    """(n, channel, h, w) from 0 to 255 -> uint8 (n, channel, size, size), bilinear, antialiased where it shrinks."""
    if size < 1:
        raise ConfigError(f"size must be at least 1 pixel, but got {size}")
    if images.dtype == torch.uint8 and images.shape[-2:] == (size, size):
        return images
    return torch.cat([
        functional.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True).round().to(torch.uint8)
        for chunk in torch.split(images, 1024)
    ])  # fmt: skip


def digits(
    *, size: int = 32, valid_share: float = 0.225, test_share: float = 0.275, seed: int = 0, limit: int | None = None,
    augment: Augmentation | None = None,
) -> Dataset:  # fmt: skip
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels and 17 levels, enlarged: real, small and always there."""
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        raise DataError("digits needs scikit-learn: pip install scikit-learn") from None
    raw = torch.from_numpy(bunch.images)[:, None] * (255 / 16)
    source = _Source(torch.from_numpy(bunch.target).long(), lambda index: _resized(raw[index], size))
    if augment is None:
        augment = Augmentation(shift=max(1, size // 16), rotate=10.0, scale=0.1)
    return _dataset(
        "digits", list("0123456789"), {"train": source}, valid_share=valid_share, test_share=test_share, seed=seed,
        limit=limit, augment=augment, resize=f"levels 0 to 16 times 255/16, bilinear from 8x8 to {size}x{size}",
    )  # fmt: skip


def npz(
    *, train: str | list[str], test: str | None = None, size: int | None = None, valid_share: float = 0.2,
    test_share: float = 0.2, seed: int = 0, limit: int | None = None, augment: Augmentation | None = None,
) -> Dataset:  # fmt: skip
    """Arrays in .npz files: `x_train`, `y_train`, perhaps `x_test`, `y_test` (uint8, NHWC or NCHW) and `class_names`.

    A file may hold `residual` (3, n, height, width) and `labels` instead: RGB coded as differences mod 256.
    The valid part is split off train; so is the test part where no file holds one.
    """
    paths = [Path(path).expanduser() for path in ([train] if isinstance(train, str) else train)]
    named = [*paths, Path(test).expanduser()] if test else paths
    if not paths or len(set(named)) < len(named):
        raise ConfigError(f"train and test must name .npz files, each once, but got {[str(p) for p in named]}")
    files = {path: _arrays(path) for path in named}
    pairs = {"train": [_pair(path, files[path], "train") for path in paths]}
    tested = named[len(paths) :] or [path for path in paths if "x_test" in files[path]]
    if tested:
        pairs["test"] = [_pair(path, files[path], "test") for path in tested]
    shapes = {tuple(images.shape[1:]) for part in pairs.values() for images, _ in part}
    if size is None and len(shapes) > 1:
        raise DataError(f"{paths[0]}: all images must be of one shape, but there are {sorted(shapes)}; set size")
    sources = {}
    for part, found in pairs.items():
        images = torch.cat([_resized(images, size) if size else images for images, _ in found])
        sources[part] = _Source(torch.cat([labels for _, labels in found]), images.__getitem__)
    names = [tuple(arrays["class_names"].astype(str).ravel().tolist()) for arrays in files.values() if "class_names" in arrays]
    if len(set(names)) > 1:
        raise DataError(f"{paths[0]}: all files must name the same classes, but there are {sorted(set(names))}")
    count = 1 + max(int(source.labels.max()) for source in sources.values())
    if not names and count > len(sources["train"].labels):
        raise DataError(f"{paths[0]}: labels must count the classes from 0, but the largest is {count - 1}")
    return _dataset(
        paths[0].stem, names[0] if names else [str(label) for label in range(count)], sources,
        valid_share=valid_share, test_share=test_share, seed=seed, limit=limit, augment=augment,
        resize=f"bilinear with antialiasing to {size}x{size}" if size else "none",
    )  # fmt: skip


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file that mean something to `npz`."""
    wanted = {"x_train", "y_train", "x_test", "y_test", "residual", "labels", "class_names"}
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} must be a .npz file of named arrays, but is one unnamed array")
        with file:
            return {name: file[name] for name in file.files if name in wanted}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} must be a whole .npz file without pickles, but cannot be read: {error}") from None


def _pair(path: Path, arrays: dict[str, NDArray[Any]], part: str) -> tuple[Tensor, Tensor]:
    """uint8 images (n, channel, height, width) and int64 labels (n,) of one file."""
    coded = "residual" in arrays
    x, y = ("residual", "labels") if coded else (f"x_{part}", f"y_{part}")
    if x not in arrays or y not in arrays:
        found = ", ".join(arrays) or "neither"
        raise DataError(f"{path} must hold {x} and {y} (or residual and labels), but holds {found}")
    images, labels = arrays[x], arrays[y]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {x} must be uint8 from 0 to 255, but is {images.dtype}")
    if coded and images.ndim == 4 and len(images) == 3:
        planes = np.cumsum(np.cumsum(images, -1, dtype=np.uint8), -2, dtype=np.uint8)  # wraps round, as the coder did
        planes[0] += planes[1]
        planes[2] += planes[1]
        images = planes.transpose(1, 0, 2, 3)
    elif not coded and images.ndim == 3:
        images = images[:, None]
    elif not coded and images.ndim == 4 and images.shape[3] in CHANNEL_ORDER:
        images = images.transpose(0, 3, 1, 2)
    if (coded and images is arrays[x]) or images.ndim != 4 or images.shape[1] not in CHANNEL_ORDER or images.size == 0:
        wanted = "(3, n, height, width)" if coded else "(n, height, width, 1 or 3) or (n, 1 or 3, height, width)"
        raise DataError(f"{path}: {x} must be of shape {wanted} and not empty, but is {arrays[x].shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        found = f"{labels.dtype} {labels.shape} from {labels.min()}" if labels.size else "empty"
        raise DataError(f"{path}: {y} must be {len(images)} whole numbers from 0, but is {found}")
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))


def image_folder(
    *, path: str, size: int, channels: int = 3, valid_share: float = 0.2, test_share: float = 0.2, seed: int = 0,
    limit: int | None = None, augment: Augmentation | None = None,
) -> Dataset:  # fmt: skip
    """Files `path/train/<class>/*.png` (or jpg, ...); without `path/valid` or `path/test`, these are split off train.

    Images are cut to the middle square, resized to `size` x `size` and made RGB, or grey where `channels` is 1.
    """
    root = Path(path).expanduser()
    if channels not in CHANNEL_ORDER or size < 1:
        raise ConfigError(f"channels must be 1 or 3 and size at least 1 pixel, but got {channels} and {size}")
    if not (root / "train").is_dir():
        raise DataError(f"{root} must hold a folder train with one folder a class, but there is none")
    folders = {part: root / part for part in ("train", "valid", "test") if (root / part).is_dir()}
    class_names = _visible_folders(folders["train"])
    sources = {}
    for part, folder in folders.items():
        here = _visible_folders(folder)
        if here != class_names or not here:
            raise DataError(f"{folder} must hold the class folders of train, {class_names}, but holds {here}")
        sources[part] = _folder_source(folder, class_names, size, channels)
    return _dataset(
        root.name, class_names, sources, valid_share=valid_share, test_share=test_share, seed=seed, limit=limit,
        augment=augment, resize=f"middle square, bilinear with antialiasing to {size}x{size}",
    )  # fmt: skip


def _visible_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _folder_source(folder: Path, class_names: list[str], size: int, channels: int) -> _Source:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        visible = sorted(file for file in (folder / name).iterdir() if not file.name.startswith("."))
        found = [file for file in visible if file.suffix.lower() in IMAGE_FILES]
        if not found:
            raise DataError(f"{folder / name} must hold images ({', '.join(sorted(IMAGE_FILES))}), but holds none")
        paths += found
        labels += [label] * len(found)
    return _Source(
        torch.tensor(labels),
        lambda index: torch.stack([_read_image(paths[i], size, channels) for i in index.tolist()]),
    )


def _read_image(path: Path, size: int, channels: int) -> Tensor:
    """One file as uint8 (channels, size, size)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise DataError(f"{path} must have 8 bits a channel, but its mode is {image.mode}; convert it")
            upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}; mend or remove it") from None
    pixels = np.array(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1)


def text(
    *, train: str, valid: str | None = None, test: str | None = None, level: texts.Level = "word",
    vocabulary: Annotated[int, Field(ge=3)], steps: Annotated[int, Field(ge=2)] = 20,
    valid_share: float = 0.1, test_share: float = 0.1, limit: Annotated[int, Field(ge=1)] | None = None,
) -> Text:  # fmt: skip
    """Text files, every line with `<eos>` at its end; parts without a file of their own are the last shares of `train`.

    The vocabulary is that of the train part; `limit` windows of `steps` tokens are the first of each part.
    """
    if not (0 < valid_share < 1 and 0 < test_share < 1 and valid_share + test_share < 1):
        raise ConfigError(f"valid_share and test_share must be above 0 and together below 1, but got {valid_share} and {test_share}")
    paths = {part: Path(path).expanduser() for part, path in (("train", train), ("valid", valid), ("test", test)) if path}
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ConfigError(f"train, valid and test must be different files, but are {', '.join(map(str, paths.values()))}")
    streams = {part: texts.read(path, level) for part, path in paths.items()}
    whole = len(streams["train"])
    for part, share in (("test", test_share), ("valid", valid_share)):
        if part not in paths:
            stream = streams["train"]
            cut = len(stream) - round(share * whole)
            streams |= {"train": stream[:cut], part: stream[cut:]}
    names = texts.vocabulary(streams["train"], vocabulary)
    numbers = {name: number for number, name in enumerate(names)}
    parts = {
        part: Windows(*texts.windows(stream, numbers, steps, limit, f"{paths.get(part, paths['train'])}: the {part} part"))
        for part, stream in streams.items()
    }
    return Text(paths["train"].stem, parts["train"], parts["valid"], parts["test"], names, level=level)


LOADERS: Mapping[str, Callable[..., Dataset]] = {loader.__name__: loader for loader in (digits, npz, image_folder, text)}


def load_data(name: str, options: Mapping[str, Any]) -> Dataset:
    """The data set that the loader `name` makes of `options`.

    Raises:
        ConfigError: no such loader, an unknown option, a value of the wrong type.
        DataError: files that are not what the loader reads.
    """
    if name not in LOADERS:
        raise ConfigError(f"there is no data set called {name!r}; {nearest(name, LOADERS)}")
    return LOADERS[name](**checked_options(LOADERS[name], dict(options), f"data {name!r}"))
