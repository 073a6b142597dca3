"""Data sets: splits, decoding, normalisation, augmentation, and one clear sentence for every bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from hwnas.data import Augmentation, Dataset, Part, batches, load_data, stratified_split
from hwnas.errors import ConfigError, DataError

SEEDS = st.integers(0, 2**32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(path: Path, **contents: Any) -> str:
    np.savez(path, **contents)
    return str(path)


def coloured(n: int, classes: int = 2, size: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """NHWC images whose red is their number and whose green is their label, and the labels in turn."""
    labels = np.arange(n) % classes
    images = np.zeros((n, size, size, 3), np.uint8)
    images[..., 0] = np.arange(n)[:, None, None]
    images[..., 1] = labels[:, None, None]
    return images, labels


@pytest.fixture
def plain(tmp_path: Path) -> str:
    images, labels = coloured(40)
    return write(tmp_path / "plain.npz", x_train=images, y_train=labels, class_names=np.array(["cat", "dog"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, n in (("train", 10), ("test", 2)):
        for index, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (12, 8), (10 * i, 200 * index, 0)).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


# --- parts and splits


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    cuts=st.lists(st.floats(0.05, 1), min_size=1, max_size=4),
    seed=SEEDS,
)
def test_split_is_disjoint_stratified_and_repeatable(labels: list[int], cuts: list[float], seed: int) -> None:
    truth = torch.tensor(labels)
    shares = [cut / sum(cuts) for cut in cuts]
    pieces = stratified_split(truth, shares, seed)
    assert sorted(torch.cat(pieces).tolist()) == list(range(len(labels)))
    for piece, share in zip(pieces, shares, strict=True):
        for label in set(labels):
            assert abs(int((truth[piece] == label).sum()) - share * labels.count(label)) <= 1 + 1e-9
    assert all(torch.equal(a, b) for a, b in zip(pieces, stratified_split(truth, shares, seed), strict=True))


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), seed=SEEDS)
def test_the_beginning_of_a_split_is_stratified(counts: list[int], seed: int) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    (order,) = stratified_split(labels, [1.0], seed)
    for k in range(len(counts), len(labels) + 1):
        taken = torch.bincount(labels[order[:k]], minlength=len(counts))
        assert all(abs(t - k * c / len(labels)) <= len(counts) for t, c in zip(taken.tolist(), counts, strict=True))
        assert taken.min() > 0


def test_digits_are_all_there_once() -> None:
    data = load_data("digits", {"size": 8})
    parts = (data.train, data.valid, data.test)
    assert [len(part) for part in parts] == [898, 404, 495]
    from sklearn.datasets import load_digits

    published = sorted(map(tuple, load_digits().data.tolist()))
    ours = torch.cat([part.images for part in parts]).flatten(1).double() * 16 / 255
    assert sorted(map(tuple, ours.round().tolist())) == published
    assert all(torch.bincount(part.labels).max() - torch.bincount(part.labels).min() <= 5 for part in parts)
    assert not torch.equal(load_data("digits", {"size": 8, "seed": 1}).test.images, data.test.images)


def test_digits_are_enlarged_as_pillow_does_it() -> None:
    small, large = (load_data("digits", {"size": size, "limit": 10}).train for size in (8, 32))
    assert large.images.shape == (10, 1, 32, 32) and torch.equal(small.labels, large.labels)
    for a, b in zip(small.images, large.images, strict=True):
        pillow = np.array(Image.fromarray(a[0].numpy()).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(pillow - b[0].numpy()).max() <= 2


# --- normalisation


def test_mean_and_std_are_those_of_the_train_part(plain: str) -> None:
    data = load_data("npz", {"train": plain})
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std[:2] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist()[:2])
    assert data.std[2] == 1.0, "a channel that never changes is not divided by 0"
    normal = data.normalise(data.train.images)
    assert normal.dtype == torch.float32
    assert normal.mean((0, 2, 3)).abs().max() < 1e-5
    assert normal.std((0, 2, 3), correction=0)[:2].tolist() == pytest.approx([1, 1], abs=1e-5)


def test_preprocessing_says_how_to_normalise(plain: str) -> None:
    data = load_data("npz", {"train": plain, "size": 6})
    says = json.loads(json.dumps(data.preprocessing()))
    assert (says["channel"], says["height"], says["width"]) == data.image_shape == (3, 6, 6)
    assert (says["layout"], says["channel_order"], says["class_names"]) == ("NCHW", "RGB", ["cat", "dog"])
    raw = data.test.images.double().permute(0, 2, 3, 1)
    by_hand = (raw * says["scale"] - torch.tensor(says["mean"])) / torch.tensor(says["std"])
    assert torch.allclose(by_hand.permute(0, 3, 1, 2).float(), data.normalise(data.test.images), atol=1e-5)


# --- augmentation


@given(
    augment=st.builds(Augmentation, st.integers(0, 9), st.booleans(), st.integers(0, 9), st.floats(0, 180), st.floats(0, 0.9)),
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=SEEDS,
)
def test_augmentation_keeps_shape_type_and_input(augment: Augmentation, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    images = torch.randint(0, 256, shape, generator=generator(seed)).to(dtype)
    before = images.clone()
    torch.manual_seed(seed)
    changed = augment(images, generator(seed))
    assert changed.shape == images.shape and changed.dtype == dtype
    assert torch.equal(images, before)
    torch.manual_seed(seed + 1)
    assert torch.equal(changed, augment(images, generator(seed))), "randomness comes from the generator only"
    assert Augmentation()(images, generator(seed)) is images


@given(shift=st.integers(1, 4), flip=st.booleans(), height=st.integers(3, 9), width=st.integers(3, 9), seed=SEEDS)
def test_shift_is_pad_and_crop(shift: int, flip: bool, height: int, width: int, seed: int) -> None:
    images = torch.randint(1, 256, (4, 3, height, width), dtype=torch.uint8, generator=generator(seed))
    changed = Augmentation(shift=shift, flip=flip)(images, generator(seed))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    for image, result in zip(padded, changed.numpy(), strict=True):
        crops = [
            image[:, y : y + height, x : x + width][:, :, ::step]
            for y in range(2 * shift + 1)
            for x in range(2 * shift + 1)
            for step in ((1, -1) if flip else (1,))
        ]
        assert any(np.array_equal(crop, result) for crop in crops)


def test_every_shift_and_both_sides_occur() -> None:
    images = torch.zeros(600, 1, 5, 7, dtype=torch.uint8)
    images[:, :, 2, 3] = 255
    rows, columns = Augmentation(shift=2)(images, generator())[:, 0].nonzero().T[1:].tolist()
    assert set(zip(rows, columns, strict=True)) == {(y, x) for y in range(5) for x in range(1, 6)}
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(600, 1, 1, 2)
    flipped = int((Augmentation(flip=True)(images, generator())[:, 0, 0, 0] == 255).sum())
    assert 240 < flipped < 360


def test_rotation_turns_without_stretching() -> None:
    images = torch.zeros(200, 1, 41, 81)
    images[:, :, 20, 70] = 1.0  # 30 pixels right of the centre
    moved = Augmentation(rotate=30.0)(images, generator())[:, 0]
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(81.0) - 40, indexing="ij")
    mass = moved.sum((1, 2))
    y, x = ((moved * axis).sum((1, 2)) / mass for axis in (rows, columns))
    assert torch.allclose((x**2 + y**2).sqrt(), torch.tensor(30.0), atol=0.6)
    angles = torch.rad2deg(torch.atan2(y, x))
    assert angles.abs().max() < 31 and angles.max() > 25 and angles.min() < -25


def test_scale_changes_the_size_both_ways() -> None:
    images = torch.zeros(200, 1, 40, 40)
    images[:, :, 10:30, 10:30] = 1.0
    sides = Augmentation(scale=0.25)(images, generator()).sum((1, 2, 3)).sqrt()
    assert sides.min() > 14.5 and sides.max() < 25.5
    assert sides.min() < 16 and sides.max() > 24


@given(side=st.integers(1, 6), seed=SEEDS)
def test_cutout_is_one_black_square(side: int, seed: int) -> None:
    images = torch.full((8, 3, 9, 7), 255, dtype=torch.uint8)
    for image in Augmentation(cutout=side)(images, generator(seed)):
        holes = (image == 0).nonzero()
        box = holes[:, 1:].amax(0) - holes[:, 1:].amin(0) + 1
        assert len(holes) == 3 * box.prod(), "the whole box is black, in all channels"
        assert box.max() <= side and box.min() >= math.ceil(side / 2) - (side % 2 == 0 and side // 2 == 0)


@pytest.mark.parametrize("wrong", [{"shift": -1}, {"cutout": -1}, {"rotate": 181.0}, {"scale": 1.0}, {"scale": math.nan}])
def test_impossible_augmentation_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"augmentation: {next(iter(wrong))} must be between 0"):
        Augmentation(**wrong)


# --- batches


@given(n=st.integers(2, 50), size=st.integers(2, 20), seed=SEEDS)
def test_batches_hold_every_image_once(n: int, size: int, seed: int) -> None:
    part = Part(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))
    found = list(batches(part, size, generator(seed)))
    assert all(2 <= len(batch) <= size for batch in found)
    indices = torch.cat(found).tolist()
    assert len(set(indices)) == len(indices) == n - (n % size == 1)
    assert indices == torch.cat(list(batches(part, size, generator(seed)))).tolist()


def test_batches_are_shuffled_anew() -> None:
    part = Part(torch.zeros(50, 1, 1, 1, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    source = generator()
    first, second = (torch.cat(list(batches(part, 8, source))).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) != first != second
    with pytest.raises(ConfigError, match="at least 2 images, but got 1"):
        list(batches(part, 1, source))


# --- npz


def pixels_follow_labels(data: Dataset) -> bool:
    return all(torch.equal(p.images[:, 1, 0, 0].long(), p.labels) for p in (data.train, data.valid, data.test))


def test_npz_splits_off_what_it_lacks(plain: str) -> None:
    data = load_data("npz", {"train": plain, "valid_share": 0.25, "test_share": 0.25})
    assert (data.name, data.class_names, data.image_shape) == ("plain", ("cat", "dog"), (3, 4, 4))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [20, 10, 10]
    numbers = torch.cat([part.images[:, 0, 0, 0] for part in (data.train, data.valid, data.test)])
    assert sorted(numbers.tolist()) == list(range(40))
    assert pixels_follow_labels(data)
    assert data.augment == Augmentation(shift=0, flip=True)


def test_npz_takes_files_layouts_and_limits(tmp_path: Path) -> None:
    images, labels = coloured(60, classes=3)
    one = write(tmp_path / "one.npz", x_train=images[:20], y_train=labels[:20].astype(np.uint8))
    two = write(tmp_path / "two.npz", x_train=images[20:40].transpose(0, 3, 1, 2), y_train=labels[20:40, None])
    test = write(tmp_path / "test.npz", x_test=images[40:], y_test=labels[40:])
    data = load_data("npz", {"train": [one, two], "test": test, "size": 8, "limit": 7, "augment": {"cutout": 2}})
    assert [len(part) for part in (data.train, data.valid, data.test)] == [7, 7, 7]
    assert data.image_shape == (3, 8, 8) and data.class_names == ("0", "1", "2")
    assert pixels_follow_labels(data)
    assert int(data.test.images[:, 0].min()) >= 40 and data.augment == Augmentation(cutout=2)
    inside = write(tmp_path / "inside.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    assert sorted(load_data("npz", {"train": inside}).test.images[:, 0, 0, 0].tolist()) == list(range(40, 60))


def test_grey_images_need_no_channel_axis(tmp_path: Path) -> None:
    images, labels = coloured(40)
    data = load_data("npz", {"train": write(tmp_path / "g.npz", x_train=images[..., 1], y_train=labels)})
    assert data.image_shape == (1, 4, 4) and data.preprocessing()["channel_order"] == "grey"


def encode(images: np.ndarray) -> np.ndarray:
    """NHWC RGB -> (3, n, height, width): green taken from red and blue, then differences along y and x, all mod 256."""
    planes = images.transpose(3, 0, 1, 2).copy()
    planes[0] -= planes[1]
    planes[2] -= planes[1]
    for axis in (-2, -1):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
    return planes


@given(images=arrays.arrays(np.uint8, st.tuples(st.just(12), st.integers(1, 6), st.integers(1, 6), st.just(3))), seed=SEEDS)
def test_residuals_decode_to_what_was_coded(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray, seed: int) -> None:
    labels = np.arange(12) % 2
    folder = tmp_path_factory.mktemp("coded")
    coded = write(folder / "coded.npz", residual=encode(images), labels=labels)
    direct = write(folder / "direct.npz", x_train=images, y_train=labels)
    a, b = (load_data("npz", {"train": path, "seed": seed, "valid_share": 0.3, "test_share": 0.3}) for path in (coded, direct))
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(a, part).images, getattr(b, part).images)


def test_cifar_parts_are_the_published_images(test_data: Path) -> None:
    folder = test_data / "cifar10"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    data = load_data("npz", {
        "train": str(folder / "cifar10_train_0.npz"), "test": str(folder / "cifar10_test.npz"), "valid_share": 0.1,
    })  # fmt: skip
    assert [len(part) for part in (data.train, data.valid, data.test)] == [9000, 1000, 10000]
    assert torch.bincount(data.valid.labels).tolist() == [100] * 10 and list(data.class_names) == names
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)
    mini = np.load(folder / "cifar10_mini.npz")
    known = {image.tobytes(): int(label) for image, label in zip(mini["x_test"], mini["y_test"], strict=True)}
    nhwc = data.test.images.permute(0, 2, 3, 1).contiguous().numpy()
    found = [known[i.tobytes()] == label for i, label in zip(nhwc, data.test.labels.tolist(), strict=True) if i.tobytes() in known]
    assert len(found) == 1000 and all(found)


GOOD_X, GOOD_Y = coloured(40)
BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "missing arrays": ({"x_train": GOOD_X, "labels": GOOD_Y}, "must hold x_train and y_train .* but holds x_train, labels"),
    "float images": ({"x_train": GOOD_X / 255, "y_train": GOOD_Y}, "x_train must be uint8 .* but is float64"),
    "five channels": ({"x_train": GOOD_X.repeat(2, -1)[..., :5], "y_train": GOOD_Y}, r"of shape .* but is \(40, 4, 4, 5\)"),
    "flat images": ({"x_train": GOOD_X.reshape(40, -1), "y_train": GOOD_Y}, r"of shape .* but is \(40, 48\)"),
    "no images": ({"x_train": GOOD_X[:0], "y_train": GOOD_Y[:0]}, "not empty"),
    "residual of one plane": ({"residual": GOOD_X[:1], "labels": GOOD_Y}, r"of shape \(3, n, height, width\)"),
    "fewer labels": ({"x_train": GOOD_X, "y_train": GOOD_Y[1:]}, r"y_train must be 40 whole numbers .* but is int64 \(39,\)"),
    "no labels": ({"x_train": GOOD_X, "y_train": GOOD_Y[:0]}, "y_train must be 40 whole numbers .* but is empty"),
    "float labels": ({"x_train": GOOD_X, "y_train": GOOD_Y * 1.0}, "whole numbers from 0, but is float64"),
    "negative labels": ({"x_train": GOOD_X, "y_train": GOOD_Y - 1}, "whole numbers from 0, but is int64 .* from -1"),
    "hashed labels": ({"x_train": GOOD_X, "y_train": GOOD_Y * 10**12}, "the largest is 1000000000000"),
    "unnamed class": (
        {"x_train": GOOD_X, "y_train": GOOD_Y, "class_names": np.array(["cat"])},
        "labels must be below 1, the number of classes, but the largest is 1",
    ),
    "empty class": (
        {"x_train": GOOD_X, "y_train": GOOD_Y, "class_names": np.array(["cat", "dog", "eel"])},
        "class 'eel' has no image in the train part",
    ),
    "pickles": ({"x_train": np.array([{}]), "y_train": GOOD_Y}, "without pickles"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_npz_is_explained(tmp_path: Path, case: str) -> None:
    contents, message = BAD_FILES[case]
    with pytest.raises(DataError, match="bad.*" + message) as caught:
        load_data("npz", {"train": write(tmp_path / "bad.npz", **contents)})
    assert "\n" not in str(caught.value)


def test_damaged_and_odd_npz_files_are_named(tmp_path: Path, plain: str) -> None:
    with pytest.raises(DataError, match=r"there is no file .*gone\.npz"):
        load_data("npz", {"train": str(tmp_path / "gone.npz")})
    with pytest.raises(DataError, match="must be a whole .npz"):
        load_data("npz", {"train": str(tmp_path)})
    content = Path(plain).read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:200] + b"\xff" * 50 + content[250:]):
        (tmp_path / "cut.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cut\.npz must be a whole \.npz file"):
            load_data("npz", {"train": str(tmp_path / "cut.npz")})
    np.save(tmp_path / "one.npy", GOOD_X)
    with pytest.raises(DataError, match="one unnamed array"):
        load_data("npz", {"train": str(tmp_path / "one.npy")})


def test_files_that_do_not_go_together_are_refused(tmp_path: Path, plain: str) -> None:
    large, _ = coloured(40, size=5)
    other = write(tmp_path / "large.npz", x_train=large, y_train=GOOD_Y)
    with pytest.raises(DataError, match=r"all images must be of one shape, but there are \[\(3, 4, 4\), \(3, 5, 5\)\]"):
        load_data("npz", {"train": [plain, other]})
    renamed = write(tmp_path / "renamed.npz", x_train=GOOD_X, y_train=GOOD_Y, class_names=np.array(["dog", "cat"]))
    with pytest.raises(DataError, match="must name the same classes"):
        load_data("npz", {"train": [plain, renamed]})
    with pytest.raises(ConfigError, match="each once"):
        load_data("npz", {"train": [plain, plain]})
    with pytest.raises(ConfigError, match="each once"):
        load_data("npz", {"train": plain, "test": plain})


# --- folders


def test_image_folder(folder: Path) -> None:
    for name in ("Thumbs.db", "._0.png"):
        (folder / "train" / "ant" / name).write_bytes(b"not an image")
    (folder / "train" / ".cache").mkdir()
    data = load_data("image_folder", {"path": str(folder), "size": 4, "valid_share": 0.2})
    assert [len(part) for part in (data.train, data.valid, data.test)] == [16, 4, 4]
    assert data.class_names == ("ant", "bee") and data.image_shape == (3, 4, 4) and data.name == folder.name
    for part in (data.train, data.valid, data.test):
        assert torch.equal(part.images[:, 1].flatten(1).amax(1).long(), part.labels * 200)
    grey = load_data("image_folder", {"path": str(folder), "size": 4, "channels": 1, "limit": 2})
    assert grey.image_shape == (1, 4, 4) and [len(p) for p in (grey.train, grey.valid, grey.test)] == [2, 2, 2]


def test_images_are_cut_to_the_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    for part in ("train", "valid", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / part / "a" / "wide.PNG")
    data = load_data("image_folder", {"path": str(tmp_path), "size": 8})
    assert int(data.test.images.min()) == 255


def test_bad_folders_are_explained(folder: Path) -> None:
    options = {"path": str(folder), "size": 4}
    with pytest.raises(DataError, match="must hold a folder train"):
        load_data("image_folder", {**options, "path": str(folder / "train")})
    (folder / "test" / "cow").mkdir()
    with pytest.raises(DataError, match=r"test must hold the class folders of train, \['ant', 'bee'\], but holds .*'cow'"):
        load_data("image_folder", options)
    (folder / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="cow must hold images"):
        load_data("image_folder", options)
    for part in ("train", "test"):
        (folder / part / "cow").rmdir()
    broken = folder / "train" / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"3\.png cannot be read as an image"):
        load_data("image_folder", options)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(broken)
    with pytest.raises(DataError, match=r"3\.png must have 8 bits a channel"):
        load_data("image_folder", options)


# --- options


def test_unknown_names_and_options_are_refused(plain: str) -> None:
    with pytest.raises(ConfigError, match="no data set called 'digit'; did you mean 'digits'"):
        load_data("digit", {})
    with pytest.raises(ConfigError, match="no option 'sise'; did you mean 'size'"):
        load_data("digits", {"sise": 8})
    with pytest.raises(ConfigError, match="seed.*'x'"):
        load_data("digits", {"seed": "x"})
    with pytest.raises(ConfigError, match="shfit"):
        load_data("digits", {"augment": {"shfit": 1}})
    with pytest.raises(ConfigError, match="shift must be between"):
        load_data("digits", {"augment": {"shift": -1}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_share": 0.0}, "valid_share and test_share must be above 0"),
        ({"valid_share": 0.6, "test_share": 0.5}, "together below 1, but got 0.6 and 0.5"),
        ({"limit": 9}, "limit must be at least 10, an image of every class, but got 9"),
        ({"size": 0}, "size must be at least 1 pixel"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data("digits", options)


def test_a_part_too_small_for_its_classes_is_refused() -> None:
    with pytest.raises(DataError, match="digits: class '0' has no image in the valid part"):
        load_data("digits", {"size": 8, "valid_share": 0.002})


@pytest.fixture
def as_installed() -> Iterator[None]:
    """Without the shape checks of the tests, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_installed")
def test_parts_keep_their_promises() -> None:
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    good = Part(images, labels)
    with pytest.raises(DataError, match="need as many int64 labels"):
        Part(images, labels[:3])
    with pytest.raises(DataError, match="must be uint8"):
        Part(images.float(), labels)
    with pytest.raises(DataError, match="the smallest is -1"):
        Part(images, labels - 1)
    with pytest.raises(DataError, match=r"test images must be \(1, 2, 2\) as in train, but are \(1, 2, 1\)"):
        Dataset("d", good, good, Part(images[..., :1], labels), ("a", "b"))
    with pytest.raises(DataError, match="valid labels must be below 2"):
        Dataset("d", good, Part(images, labels + 1), good, ("a", "b"))
