"""Text: tokens, vocabulary, windows that do not overlap, and one clear sentence for every bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hwnas import text as texts
from hwnas.config import Experiment, parse
from hwnas.data import Text, Windows, load_data
from hwnas.errors import ConfigError, DataError
from hwnas.evaluate import score
from hwnas.search import check_fit
from hwnas.space import load_space
from hwnas.train import TrainSettings, evaluate_accuracy, train

RHYME = "the cat saw the dog\nthe dog saw a bird\n\nthe bird saw nothing\n"


@pytest.fixture
def rhyme(tmp_path: Path) -> Path:
    path = tmp_path / "rhyme.txt"
    path.write_text(RHYME * 10, encoding="utf-8")
    return path


def load(path: Path, **options: Any) -> Text:
    data = load_data("text", {"train": str(path), "vocabulary": 6, "steps": 3, **options})
    assert isinstance(data, Text)
    return data


def words(data: Text, part: Windows) -> list[str]:
    """The part's tokens one behind the other, the label of the last one at the end."""
    return [data.class_names[i] for i in [*part.images.flatten().tolist(), int(part.labels[-1, -1])]]


# --- files to tokens


@pytest.mark.parametrize(
    ("file", "number", "distinct"),
    [("tinyshakespeare", 242_651, 25_670), ("wikitext2_valid", 217_646, 13_776), ("wikitext2_test", 245_569, 14_142)],
)
def test_published_texts_have_the_stated_numbers_of_words(test_data: Path, file: str, number: int, distinct: int) -> None:
    tokens = texts.read(test_data / "text" / f"{file}.txt", "word")
    assert (len(tokens), len(set(tokens) - {texts.END})) == (number, distinct)


def test_characters_of_shakespeare(test_data: Path) -> None:
    path = test_data / "text" / "tinyshakespeare.txt"
    tokens = texts.read(path, "character")
    assert len(tokens) == 1_115_394, "a character each, the ends of lines included"
    assert len(set(tokens)) == 65
    assert "".join(tokens).replace(texts.END, "\n") == path.read_text(encoding="utf-8")


def test_vocabulary_is_of_the_most_frequent_words_of_the_train_part(rhyme: Path) -> None:
    assert texts.vocabulary(texts.read(rhyme, "word"), 6) == ("<unk>", "<eos>", "the", "saw", "bird", "dog")
    rhyme.write_text("a a b\n" * 20 + "c c c c\n" * 10, encoding="utf-8")
    assert load(rhyme, vocabulary=4, valid_share=0.3, test_share=0.3, steps=2).class_names == ("<unk>", "<eos>", "a", "b")


def test_unknown_in_the_file_is_the_unknown_token(tmp_path: Path) -> None:
    tokens = ["<unk>", "a", "<unk>", "b", "<eos>"]
    names = texts.vocabulary(tokens, 3)
    assert names == ("<unk>", "<eos>", "a")
    stream, _ = texts.windows(tokens, {name: i for i, name in enumerate(names)}, 4, None, "it")
    assert stream.flatten().tolist() == [0, 2, 0, 0]


# --- windows


@given(number=st.integers(2, 60), steps=st.integers(1, 9), limit=st.none() | st.integers(1, 5))
def test_windows_follow_one_another_and_labels_are_the_next_tokens(number: int, steps: int, limit: int | None) -> None:
    tokens = [str(i) for i in range(number)]
    numbers = {name: i for i, name in enumerate(["<unk>", *tokens])}
    if number <= steps:
        with pytest.raises(DataError, match=f"it must have at least {steps + 1} tokens"):
            texts.windows(tokens, numbers, steps, limit, "it")
        return
    x, y = texts.windows(tokens, numbers, steps, limit, "it")
    wanted = min((number - 1) // steps, limit or number)
    assert x.shape == (wanted, 1, steps, 1) and y.shape == (wanted, steps)
    assert x.flatten().tolist() == list(range(1, wanted * steps + 1))
    assert y.flatten().tolist() == list(range(2, wanted * steps + 2))


def test_parts_of_one_file_are_contiguous_and_do_not_overlap(rhyme: Path) -> None:
    data = load(rhyme, vocabulary=9, valid_share=0.25, test_share=0.25)
    stream = texts.read(rhyme, "word")
    parts = [words(data, part) for part in (data.train, data.valid, data.test)]  # type: ignore[arg-type]
    begins = [0, len(stream) - 2 * round(len(stream) / 4), len(stream) - round(len(stream) / 4)]
    for begin, part, end in zip(begins, parts, [*begins[1:], len(stream)], strict=True):
        assert part == stream[begin : begin + len(part)]
        assert end - 3 <= begin + len(part) <= end, "no token of the next part is a label here, and less than a window is lost"


def test_parts_of_their_own_files(test_data: Path) -> None:
    folder = test_data / "text"
    data = load(folder / "wikitext2_valid.txt", valid=str(folder / "wikitext2_test.txt"), vocabulary=1000, steps=35, test_share=0.2)
    whole = len(texts.read(folder / "wikitext2_valid.txt", "word"))
    assert len(data.train) + len(data.test) == pytest.approx(whole / 35, abs=2)
    assert len(data.valid) == (245_569 - 1) // 35
    assert words(data, data.valid)[:5] == ["<eos>", "=", "<unk>", "<unk>", "="]  # type: ignore[arg-type]
    assert [len(part) for part in (load(folder / "wikitext2_valid.txt", limit=7).train,)] == [7]


# --- what the rest of the package sees


def test_tokens_are_not_changed_on_their_way_into_a_network(rhyme: Path) -> None:
    data = load(rhyme)
    x = data.normalise(data.augment(data.train.images[:4], torch.Generator()))
    assert x.dtype == torch.float32 and torch.equal(x, data.train.images[:4].float())
    says = json.loads(json.dumps(data.preprocessing()))
    assert (says["channel"], says["height"], says["width"]) == data.image_shape == (1, 3, 1)
    assert (says["level"], says["mean"], says["std"], says["raw_range"]) == ("word", [0.0], [1.0], [0, 5])


class Bigrams(nn.Module):
    """Logits of the next token from the last one alone."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens[:, 0, :, 0].long()).transpose(1, 2)
        return logits


def test_accuracy_loss_and_perplexity_are_means_over_tokens(rhyme: Path) -> None:
    data, network = load(rhyme), Bigrams(6)
    logits = network(data.normalise(data.valid.images)).detach().double()
    found = score(network, data)
    flat = logits.transpose(1, 2).reshape(-1, 6)
    assert found["accuracy"] == pytest.approx(float((flat.argmax(1) == data.valid.labels.flatten()).double().mean()))
    assert found["loss"] == pytest.approx(float(functional.cross_entropy(flat, data.valid.labels.flatten())))
    assert found["error"] == 1 - found["accuracy"] and found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert evaluate_accuracy(network, data, data.valid, 2).n == data.valid.labels.numel()


def test_bigrams_are_learnt_down_to_their_entropy(rhyme: Path) -> None:
    data = load(rhyme)
    network = Bigrams(6)
    train(network, data, TrainSettings(epochs=12, batch_size=8, lr=4.0, weight_decay=0.0), seed=0)
    pairs = torch.zeros(6, 6)
    for a, b in zip(data.train.images.flatten().tolist(), data.train.labels.flatten().tolist(), strict=True):
        pairs[a, b] += 1
    shares = pairs / pairs.sum(1, keepdim=True).clamp_min(1)
    entropy = float(-(pairs * shares.clamp_min(1e-9).log()).sum() / pairs.sum())
    assert evaluate_accuracy(network, data, data.train).loss == pytest.approx(entropy, abs=0.05)


# --- bad inputs


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": "nowhere.txt"}, "there is no file nowhere.txt"),
        ({"vocabulary": 10}, r"vocabulary must be from 3 to 9, the tokens of the train part"),
        ({"vocabulary": 2}, "vocabulary"),
        ({"steps": 200}, r"rhyme\.txt: the train part must have at least 201 tokens"),
        ({"steps": 21, "valid_share": 0.1}, r"rhyme\.txt: the (test|valid) part must have at least 22 tokens"),
        ({"valid_share": 0.5, "test_share": 0.5}, "together below 1"),
        ({"level": "sentence"}, "level"),
        ({"step": 3}, "'steps'"),
    ],
)
def test_what_cannot_be_loaded(rhyme: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises((DataError, ConfigError), match=says) as caught:
        load(rhyme, **options)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_text(tmp_path: Path, rhyme: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\xff\xfe")
    for name, says in (("empty.txt", "is empty"), ("image.txt", "UTF-8"), (".", "cannot read")):
        with pytest.raises(DataError, match=says):
            load(tmp_path / name)
    with pytest.raises(ConfigError, match="must be different files"):
        load(rhyme, valid=str(rhyme))


def test_tokens_out_of_range() -> None:
    def part(tokens: list[int], labels: list[int]) -> Windows:
        return Windows(torch.tensor(tokens, dtype=torch.int32).view(1, 1, -1, 1), torch.tensor([labels]))

    fine = part([0, 1], [1, 2])
    Text("fine", fine, fine, fine, ("a", "b", "c"))
    with pytest.raises(DataError, match="valid tokens must be below 3, the vocabulary's size, but one is 3"):
        Text("far", fine, part([0, 3], [1, 2]), fine, ("a", "b", "c"))
    with pytest.raises(DataError, match="test windows must be"):
        Text("long", fine, fine, part([0, 1, 1], [1, 2, 1]), ("a", "b", "c"))
    with pytest.raises(DataError, match="must be 0 or more, but the smallest is -1"):
        part([0, -1], [1, 2])


def test_labels_that_are_not_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are not checked outside of pytest
    tokens = torch.zeros(1, 1, 2, 1, dtype=torch.int32)
    with pytest.raises(DataError, match="need an int64 label each"):
        Windows(tokens, torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(DataError, match=r"tokens must be int32 of shape \(n, 1, steps, 1\)"):
        Windows(tokens.float(), torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"name": "rnn_cell", "vocabulary": 7, "steps": 3}, "set space.vocabulary to data.vocabulary"),
        ({"name": "rnn_cell", "vocabulary": 6, "steps": 4}, "set space.steps to data.steps"),
        ({"name": "mobilenet_v2"}, "gives tokens, but the space mobilenet_v2 reads images"),
    ],
)
def test_data_and_space_must_fit(rhyme: Path, space: dict[str, Any], says: str) -> None:
    options = {"name": "text", "train": str(rhyme), "vocabulary": 6, "steps": 3}
    experiment = parse(Experiment, {"name": "misfit", "data": options, "space": space}, "test")
    with pytest.raises(ConfigError, match=says):
        check_fit(experiment, experiment.load_space(), experiment.load_data())


def test_images_do_not_fit_a_recurrent_space() -> None:
    experiment = parse(Experiment, {"name": "misfit", "data": {"name": "digits"}, "space": {"name": "rnn_cell"}}, "test")
    with pytest.raises(ConfigError, match="gives images, but the space rnn_cell reads tokens"):
        check_fit(experiment, load_space("rnn_cell", {"nodes": 1, "steps": 2}), experiment.load_data())
