import pytest
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.transfer.projection import PROJECTIONS, make_projection


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_draws_nothing_from_the_global_generator(name):
    before = torch.get_rng_state()
    make_projection(name, 8, 3, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_generators_give_equal_projections_and_others_do_not():
    first, same, other = (make_projection("student", 8, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.weight, same.weight)
    assert not torch.equal(first.weight, other.weight)


def test_the_student_projection_is_linear_and_starts_within_glorots_bound():
    projection = make_projection("student", 200, 100, torch.Generator().manual_seed(1))
    h = torch.randn(5, 200)
    torch.testing.assert_close(projection(h), h @ projection.weight.T)
    bound = (6 / 300) ** 0.5
    assert float(projection.weight.detach().abs().max()) <= bound
    assert float(projection.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_trap_01_the_slice_is_there_by_its_name_only():
    h = torch.randn(5, 8)
    generator = torch.Generator()
    assert torch.equal(make_projection("legacy_slice", 8, 2, generator)(h), h[:, :2])
    assert torch.equal(make_projection("none", 8, 8, generator)(h), h)
    assert not list(make_projection("legacy_slice", 8, 2, generator).parameters())


def test_an_unknown_projection_offers_the_names():
    with pytest.raises(TrainingError, match="did you mean 'student'"):
        make_projection("studnt", 8, 3, torch.Generator())
