"""All sites under probabilities. That one-hot rows give the network itself is law 4, in `contract/test_spaces.py`."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.cost import choice_mask, one_hot
from hwnas.errors import SpaceError
from hwnas.op import OpSpec
from hwnas.space import SearchSpace, load_space
from hwnas.supernet import Supernet


def soft(space: SearchSpace, rng: np.random.Generator) -> Tensor:
    logits = torch.as_tensor(rng.normal(size=choice_mask(space).shape), dtype=torch.float32)
    return logits.masked_fill(~choice_mask(space), -torch.inf).softmax(-1)


def images_of(space: SearchSpace, n: int = 2) -> Tensor:
    return torch.randn(n, *space.input_shape, generator=torch.Generator().manual_seed(0))


class Level(nn.Module):
    """Stands in for an operator: the mean of what comes in, in the shape that must come out."""

    def __init__(self, op: OpSpec, vector: bool) -> None:
        super().__init__()
        self.shape = (op.c_out,) if vector else (op.c_out, op.out_height, op.out_width)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)).reshape(-1, *[1] * len(self.shape)).expand(-1, *self.shape)


def test_each_decision_weighs_once(rng: np.random.Generator) -> None:
    """With operators that hand a constant on, the output is the sum of all weights along all paths: probabilities add up to 1."""
    space = load_space("mobilenet_v2", {**load_space("mobilenet_v2").small, "classes": 3})
    supernet = Supernet(space)
    for i, site in enumerate(space.sites):
        supernet.sites[str(i)] = Level(site.op, vector=site.output == space.output)
    for _ in range(5):
        out = supernet(torch.ones(2, *space.input_shape), soft(space, rng))
        torch.testing.assert_close(out, torch.ones(2, 3))


def test_a_branch_is_weighed_by_its_choice_and_by_what_feeds_it(diamond: SearchSpace) -> None:
    supernet = Supernet(diamond, torch.Generator().manual_seed(1)).eval()
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.6, 0.0]])
    images = images_of(diamond)
    stem, one, three, _, _, classifier = supernet.sites.values()
    a = stem(images)
    b = 0.3 * one(a) + 0.2 * three(a)
    fed = 1 - (1 - 0.5)
    torch.testing.assert_close(supernet(images, probs), classifier(a + 0.6 * fed * b))


def test_gradients_reach_every_choice_that_matters(space: SearchSpace, rng: np.random.Generator) -> None:
    if not space.expectable:
        pytest.skip(f"the networks of {space.name} cannot be mixed")
    supernet = Supernet(space, torch.Generator().manual_seed(1))
    probs = soft(space, rng).requires_grad_()
    supernet(images_of(space, 4), probs).square().sum().backward()
    assert probs.grad is not None
    assert bool(probs.grad.isfinite().all())
    assert bool((probs.grad[~choice_mask(space)] == 0).all())
    assert all(probs.grad[decision] != 0 for decision in {decision for site in space.sites for decision in site.when})
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in supernet.parameters())


def test_gradients_are_finite_at_one_hot_rows(space: SearchSpace, rng: np.random.Generator) -> None:
    if not space.expectable:
        pytest.skip(f"the networks of {space.name} cannot be mixed")
    supernet = Supernet(space, torch.Generator().manual_seed(1))
    for _ in range(5):
        probs = one_hot(space, [space.random(rng)])[0].requires_grad_()
        supernet(images_of(space, 4), probs).square().sum().backward()
        assert probs.grad is not None
        assert bool(probs.grad.isfinite().all())


def test_choices_of_probability_zero_do_not_run(diamond: SearchSpace) -> None:
    supernet = Supernet(diamond).eval()
    ran: list[str] = []
    for name, module in supernet.sites.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    supernet(images_of(diamond), torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]))
    assert ran == ["0", "2", "5"]


def test_an_extracted_network_has_weights_of_its_own(space: SearchSpace, rng: np.random.Generator) -> None:
    supernet = Supernet(space, torch.Generator().manual_seed(1))
    network = supernet.extract(space.random(rng))
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_an_architecture_without_a_path_is_an_error() -> None:
    space = load_space("nasbench201", load_space("nasbench201").small)
    supernet = Supernet(space)
    with pytest.raises(SpaceError, match="no path from the input of nasbench201 to its output"):
        supernet.of(images_of(space), (0,) * 6)
    with pytest.raises(SpaceError, match="no path from the input of nasbench201 to its output"):
        supernet(images_of(space), one_hot(space, [(0,) * 6])[0])


def test_shapes_are_checked_under_pytest(diamond: SearchSpace) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="probs"):
        Supernet(diamond)(images_of(diamond), torch.zeros(3))


def test_every_image_may_have_probabilities_of_its_own(space: SearchSpace, rng: np.random.Generator) -> None:
    """In eval mode each gets what its own network gives it alone, dead branches included."""
    if not space.expectable:
        pytest.skip(f"the networks of {space.name} cannot be mixed")
    supernet = Supernet(space, torch.Generator().manual_seed(1)).eval()
    for norm in (module for module in supernet.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.constant_(norm.bias, 0.3)  # zeros do not come out as zeros
    archs = [space.random(rng) for _ in range(6)]
    images = images_of(space, len(archs))
    with torch.no_grad():
        together = supernet(images, one_hot(space, archs))
        alone = torch.cat([supernet.of(image[None], arch) for image, arch in zip(images, archs, strict=True)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        rows = torch.stack([soft(space, rng) for _ in archs])
        mixed = torch.cat([supernet(image[None], probs) for image, probs in zip(images, rows, strict=True)])
        torch.testing.assert_close(supernet(images, rows), mixed, rtol=1e-4, atol=1e-5)
