import math

import pytest
import torch

from amad.evaluation.bench_maps import exact_loss, loss_of_maps, maps, naive_loss, relative_error

OPS = ("mse", "kl", "token")


def tensors(n_batch=2, n_student=3, n_teacher=5, n_queries=7, n_keys=6, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def make(heads, length):
        return torch.randn(n_batch, heads, length, width, generator=generator, dtype=torch.float64).to(dtype)

    return (
        make(n_student, n_queries),
        make(n_student, n_keys),
        make(n_teacher, n_queries),
        make(n_teacher, n_keys),
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("block_numbers", [1, 250, 10**6])
def test_the_exact_loss_in_blocks_is_that_of_whole_maps(op, block_numbers):
    query, key, *teacher = tensors()
    leaves = query.clone().requires_grad_(), key.clone().requires_grad_()
    whole = naive_loss(op, *leaves, *teacher)
    expected = torch.autograd.grad(whole, leaves)
    value, *gradients = exact_loss(op, query, key, *teacher, block_numbers=block_numbers)
    torch.testing.assert_close(value, whole.detach(), rtol=1e-14, atol=0)
    for mine, its in zip(gradients, expected, strict=True):
        assert relative_error(mine, its) < 1e-14


@pytest.mark.parametrize("op", OPS)
def test_the_exact_gradients_are_differences_of_values(op):
    query, key, *teacher = tensors(n_batch=1, n_queries=3, n_keys=3)
    _, to_query, to_key = exact_loss(op, query, key, *teacher)
    direction = torch.randn_like(query), torch.randn_like(key)
    step = 1e-5
    ahead, behind = (
        exact_loss(op, query + sign * step * direction[0], key + sign * step * direction[1], *teacher)[0]
        for sign in (1, -1)
    )
    slope = (to_query * direction[0]).sum() + (to_key * direction[1]).sum()
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=1e-6, atol=1e-9)


def test_one_head_from_one_by_hand():
    # One student head takes all of the alignment, whatever its cosine.
    student = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]], dtype=torch.float64)
    teacher = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], dtype=torch.float64)
    product = 0.5 + 0.125 + 0.375
    norms = math.sqrt(0.25 + 0.25 + 0.0625 + 0.5625) * math.sqrt(1.5)
    divergence = math.log(1 / 0.5) + 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert loss_of_maps("mse", student, teacher).item() == pytest.approx(2 - 2 * product / norms, rel=1e-14)
    assert loss_of_maps("kl", student, teacher).item() == pytest.approx(divergence / 2, rel=1e-14)
    assert loss_of_maps("token", student, teacher).item() == pytest.approx(divergence / 2, rel=1e-14)


def test_maps_of_anything_but_float64_are_float32():
    query, key, *_ = tensors(dtype=torch.bfloat16)
    assert maps(query, key).dtype == torch.float32
    assert maps(query.double(), key.double()).dtype == torch.float64
    torch.testing.assert_close(maps(query, key).sum(-1), torch.ones(2, 3, 7))


def test_the_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]).double()) == pytest.approx(0.2)
    assert relative_error(torch.zeros(2), torch.zeros(2).double()) == 0
    assert relative_error(torch.ones(2), torch.zeros(2).double()) == math.inf
    assert relative_error(torch.tensor([math.nan]), torch.ones(1).double()) == math.inf
