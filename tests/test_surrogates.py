"""The networks that read architectures: tokens, legal by construction, and sequences of other lengths than were seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.space import SearchSpace
from hwnas.surrogates import EncoderPredictorDecoder, SequenceRegressor, Vocabulary, fit, own_randomness, scaled


def test_equal_labels_are_one_token_and_writing_undoes_reading(space: SearchSpace, rng: np.random.Generator) -> None:
    vocabulary = Vocabulary(space)
    archs = [space.random(rng) for _ in range(5)]
    tokens = vocabulary.read(archs)
    assert vocabulary.write(tokens) == archs
    labels = {slot.choices[choice] for arch in archs for slot, choice in zip(space.slots, arch, strict=True)}
    assert len(set(tokens.flatten().tolist())) == len(labels)
    assert bool(vocabulary.legal.gather(1, tokens.T).all())


@pytest.mark.parametrize("merge", [1, 3])
def test_an_untrained_decoder_writes_legal_tokens_only(space: SearchSpace, rng: np.random.Generator, merge: int) -> None:
    vocabulary = Vocabulary(space)
    with own_randomness(0), torch.no_grad():
        model = EncoderPredictorDecoder(vocabulary, 2, hidden=8, embedding=4, merge=merge)
        outputs = torch.nn.functional.normalize(torch.randn(20, -(-len(space.slots) // merge), 8), dim=-1)
        written = vocabulary.write(model.greedy(outputs))
    assert all(0 <= choice < number for arch in written for choice, number in zip(arch, space.num_choices, strict=True))


def test_greedy_decoding_follows_the_probabilities_of_teacher_forcing(space: SearchSpace) -> None:
    vocabulary = Vocabulary(space)
    with own_randomness(0), torch.no_grad():
        model = EncoderPredictorDecoder(vocabulary, 1, hidden=8, embedding=4)
        outputs = torch.nn.functional.normalize(torch.randn(3, len(space.slots), 8), dim=-1)
        written = model.greedy(outputs)
        assert torch.equal(model.decode(outputs, written).argmax(-1), written)


def test_only_the_tokens_before_the_length_are_read() -> None:
    with own_randomness(0), torch.no_grad():
        model = SequenceRegressor(9, 2, hidden=8, embedding=4)
        tokens = torch.randint(1, 9, (4, 6))
        other = tokens.clone()
        other[:, 3:] = 1
        lengths = torch.tensor([3, 3, 2, 1])
        assert torch.equal(model(tokens, lengths), model(other, lengths))
        assert not torch.equal(model(tokens, lengths + 3), model(other, lengths + 3))


def test_scaling_is_by_rank_and_takes_ties_together() -> None:
    values = torch.tensor([[3.0, 5.0], [1.0, 5.0], [900.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    assert scaled(values)[:, 0].tolist() == [0.5, 0.125, 0.875, 0.5]
    assert scaled(values)[:, 1].tolist() == [0.5] * 4


def test_fitting_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    def fitted() -> list[float]:
        with own_randomness(3):
            model = torch.nn.Linear(2, 1)
            first = float(model(torch.ones(1, 2)).square().detach())
            return [first, fit(model, lambda: model(torch.ones(1, 2)).square().sum(), 30, 0.1)]

    before = torch.get_rng_state()
    first, last = fitted()
    assert last < 0.1 * first
    assert fitted() == [first, last]
    assert torch.equal(torch.get_rng_state(), before)
