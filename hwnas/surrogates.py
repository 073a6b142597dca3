"""Small networks that read architectures as tokens: DPP-Net's recurrent surrogate, and NAO's encoder, predictor and decoder.

Shared by the searchers that learn what architectures are worth. A token is the label of a choice, so that what is learnt of a
layer holds wherever it stands; a slot admits only its own labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch._dynamo  # an optimiser's first step would import it, seconds of somebody's ask
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from hwnas.space import Architecture, SearchSpace

CLIP = 5.0
"""Largest norm of a gradient."""


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Meanwhile torch's global generator, which initialises layers and drops units out, is seeded so; then it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Vocabulary:
    """The tokens of a space: 0 is the start of a sequence, every distinct label of a choice is one more."""

    def __init__(self, space: SearchSpace) -> None:
        labels = sorted({label for slot in space.slots for label in slot.choices})
        number = {label: token for token, label in enumerate(labels, 1)}
        self.size = len(labels) + 1
        self.tokens: Int[Tensor, "slot choice"] = torch.zeros(len(space.slots), max(space.num_choices), dtype=torch.int64)
        self.legal: Bool[Tensor, "slot token"] = torch.zeros(len(space.slots), self.size, dtype=torch.bool)
        for i, slot in enumerate(space.slots):
            for choice, label in enumerate(slot.choices):
                self.tokens[i, choice] = number[label]
                self.legal[i, number[label]] = True
        self._choices = [{number[label]: choice for choice, label in enumerate(slot.choices)} for slot in space.slots]

    def read(self, archs: Sequence[Architecture]) -> Int[Tensor, "n slot"]:
        """Architectures as tokens."""
        rows = torch.tensor(list(archs), dtype=torch.int64).reshape(len(archs), len(self.tokens))
        return self.tokens[torch.arange(rows.shape[1]), rows]

    def write(self, tokens: Int[Tensor, "n slot"]) -> list[Architecture]:
        """The inverse of `read`, of legal tokens."""
        return [tuple(self._choices[slot][token] for slot, token in enumerate(row)) for row in tokens.tolist()]


def scaled(values: Float[Tensor, "n target"]) -> Float[Tensor, "n target"]:
    """Every column by rank, between 0 for its least values and 1 for its greatest; 1/2 where all are equal.

    Scaled by value instead, a few networks that learn nothing would leave no difference between those that matter.
    """
    ranks = torch.tensor(rankdata(values.numpy(), axis=0) - 0.5) / max(len(values), 1)
    return ranks.float()


def fit(module: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float, weight_decay: float = 0.0) -> float:
    """That many steps of Adam down the loss, gradients clipped; the last loss. The module is left in eval mode."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
    module.train()
    value = torch.zeros(())
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
    module.eval()
    return float(value.detach())


class SequenceRegressor(nn.Module):
    """DPP-Net's surrogate: embedding, LSTM, linear layer on the last hidden state, sigmoid (arXiv 1806.08198).

    Sequences of any length up to that of the space are read, so it can be asked of longer ones than it has seen.
    """

    def __init__(self, tokens: int, targets: int, *, hidden: int = 64, embedding: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, targets)

    def forward(self, tokens: Int[Tensor, "n slot"], lengths: Int[Tensor, " n"]) -> Float[Tensor, "n target"]:
        """Targets between 0 and 1 of the first `lengths` >= 1 tokens of each row."""
        hidden, _ = self.lstm(self.embedding(tokens))
        found: Tensor = self.head(hidden[torch.arange(len(tokens)), lengths - 1]).sigmoid()
        return found


class EncoderPredictorDecoder(nn.Module):
    """NAO's three parts, trained together: a continuous form of architectures, what they are worth, and the way back (arXiv 1808.07233).

    An architecture is the unit vectors of its LSTM outputs, one for every `merge` tokens; their mean, made a unit vector, is
    its embedding, from which the targets are predicted. The decoder attends to the outputs and can write only legal tokens.
    """

    def __init__(
        self, vocabulary: Vocabulary, targets: int, *, hidden: int = 96, embedding: int = 32, merge: int = 1, layers: int = 1
    ) -> None:
        super().__init__()
        self.merge = merge
        self.legal: Tensor
        self.register_buffer("legal", vocabulary.legal, persistent=False)
        self.embedding = nn.Embedding(vocabulary.size, embedding)
        self.encoder = nn.LSTM(merge * embedding, hidden, batch_first=True)
        deep = [part for _ in range(layers) for part in (nn.Linear(hidden, hidden), nn.ReLU())]
        self.predictor = nn.Sequential(*deep, nn.Linear(hidden, targets))
        self.decoder = nn.LSTM(embedding, hidden, batch_first=True)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.mix = nn.Linear(2 * hidden, hidden)
        self.out = nn.Linear(hidden, vocabulary.size)

    def encode(self, tokens: Int[Tensor, "n slot"]) -> Float[Tensor, "n step hidden"]:
        """The outputs of the encoder, unit vectors."""
        embedded = self.embedding(functional.pad(tokens, (0, -tokens.shape[1] % self.merge)))
        outputs, _ = self.encoder(embedded.reshape(len(tokens), -1, self.merge * embedded.shape[-1]))
        return functional.normalize(outputs, dim=-1)

    def predict(self, outputs: Float[Tensor, "n step hidden"]) -> Float[Tensor, "n target"]:
        """Targets between 0 and 1."""
        found: Tensor = self.predictor(_embedding(outputs)).sigmoid()
        return found

    def decode(self, outputs: Float[Tensor, "n step hidden"], tokens: Int[Tensor, "n slot"]) -> Float[Tensor, "n slot token"]:
        """Log probabilities of every token given those before it."""
        begun = functional.pad(tokens[:, :-1], (1, 0))
        states, _ = self.decoder(self.embedding(begun), self._start(outputs))
        return self._read(outputs, states, self.legal)

    def greedy(self, outputs: Float[Tensor, "n step hidden"]) -> Int[Tensor, "n slot"]:
        """The tokens of greatest probability, one after the other."""
        token, state = torch.zeros(len(outputs), 1, dtype=torch.int64), self._start(outputs)
        written = []
        for legal in self.legal:
            states, state = self.decoder(self.embedding(token), state)
            token = self._read(outputs, states, legal[None]).argmax(-1)
            written.append(token)
        return torch.cat(written, 1)

    def loss(
        self, tokens: Int[Tensor, "n slot"], targets: Float[Tensor, "n target"], known: Bool[Tensor, "n target"], trade_off: float
    ) -> Float[Tensor, ""]:
        """`trade_off` x mean squared error of the known targets + (1 - `trade_off`) x mean negative log likelihood of a token."""
        outputs = self.encode(tokens)
        missed = ((self.predict(outputs) - targets).square() * known).sum() / known.sum().clamp_min(1)
        surprise = functional.nll_loss(self.decode(outputs, tokens).flatten(0, 1), tokens.flatten())
        return trade_off * missed + (1 - trade_off) * surprise

    def improved(
        self, outputs: Float[Tensor, "n step hidden"], weights: Float[Tensor, "n target"], eta: float
    ) -> Float[Tensor, "n step hidden"]:
        """A step of length `eta` down the weighted sum of the predicted targets, each output made a unit vector again."""
        start = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad((self.predict(start) * weights).sum(), start)
        return functional.normalize(start.detach() - eta * slope, dim=-1)

    def _start(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        embedding = _embedding(outputs)[None].contiguous()
        return embedding, embedding

    def _read(self, outputs: Tensor, states: Tensor, legal: Tensor) -> Tensor:
        attention = (self.query(states) @ outputs.transpose(1, 2)).softmax(-1)
        mixed = self.mix(torch.cat((attention @ outputs, states), -1)).tanh()
        found: Tensor = self.out(mixed).masked_fill(~legal, -torch.inf).log_softmax(-1)
        return found


def _embedding(outputs: Float[Tensor, "n step hidden"]) -> Float[Tensor, "n hidden"]:
    return functional.normalize(outputs.mean(1), dim=-1)
