"""The state file: round trip, atomic replacement, clear errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.checkpoint import load_state, save_state
from hwnas.errors import RunError

METADATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=3),
    dtype=st.sampled_from(DTYPES),
    metadata=st.dictionaries(st.text(), METADATA, max_size=4),
)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, metadata: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("state") / "deep" / "state.safetensors"
    tensors = {f"t{i}.é": (torch.rand(shape) * 100).to(dtype) for i, shape in enumerate(shapes)}
    save_state(path, tensors, metadata)
    loaded, read = load_state(path)
    assert read == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype and torch.equal(loaded[name], tensor)


def test_shared_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    save_state(tmp_path / "s", {"base": base, "alias": base, "turned": base.T, "learnt": base.requires_grad_()}, {})
    loaded, _ = load_state(tmp_path / "s")
    assert torch.equal(loaded["turned"], base.T) and torch.equal(loaded["alias"], loaded["learnt"])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "s"
    save_state(path, {"x": torch.ones(2)}, {"epoch": 1})

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(RunError, match="s cannot be written: No space left"):
        save_state(path, {"x": torch.zeros(2)}, {"epoch": 2})
    assert load_state(path)[1] == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, {"x": torch.ones(100)}, {"epoch": 1})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"s\.safetensors must be a whole checkpoint.*delete it"):
        load_state(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no checkpoint .*nowhere"):
        load_state(tmp_path / "nowhere")
    with pytest.raises(RunError, match="must be a whole checkpoint"):
        load_state(tmp_path)
    foreign = tmp_path / "foreign"
    for metadata in (None, {"format": "pt"}, {"hwnas": "[1"}, {"hwnas": "3"}):
        safetensors.torch.save_file({"x": torch.ones(1)}, foreign, metadata)
        with pytest.raises(RunError, match="foreign is a safetensors file that hwnas did not write"):
            load_state(foreign)
