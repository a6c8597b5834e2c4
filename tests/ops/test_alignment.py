"""Alignment weights from inner products."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import RecipeError
from amad.ops.alignment import alignment_weights, cosines
from amad.ops.attention_gram import AttentionGram


def gram_of(student, teacher):
    """Of vectors (batch, head, number)."""
    transposed = student.transpose(1, 2)
    return AttentionGram(teacher @ transposed, student @ transposed, teacher.square().sum(-1))


def random_gram(seed, n_students=3, n_teachers=4):
    generator = torch.Generator().manual_seed(seed)
    student = torch.rand(2, n_students, 6, generator=generator, dtype=torch.float64)
    return gram_of(student, torch.rand(2, n_teachers, 6, generator=generator, dtype=torch.float64))


def test_a_case_worked_by_hand():
    """Teacher (3, 4) and students (1, 0), (0, 2): cosines 3/5 and 4/5."""
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    gram = gram_of(student, torch.tensor([[[3.0, 4.0]]]))
    torch.testing.assert_close(cosines(gram).cross, torch.tensor([[[0.6, 0.8]]]))
    high, low = math.exp(0.8 / 0.5), math.exp(0.6 / 0.5)
    expected = torch.tensor([[[low / (low + high), high / (low + high)]]])
    torch.testing.assert_close(alignment_weights(gram, 0.5), expected)


def test_the_figures_of_the_method_at_two_temperatures():
    """Similarities .9 .5 .3 .3 .2 .2 give .27 to .13 at temperature 1, and .98 to the best at 0.1."""
    cross = torch.tensor([[[0.9, 0.5, 0.3, 0.3, 0.2, 0.2]]])
    gram = AttentionGram(cross, torch.eye(6)[None], torch.ones(1, 1))
    warm, cold = alignment_weights(gram, 1.0), alignment_weights(gram, 0.1)
    assert (warm.max().item(), warm.min().item()) == (
        pytest.approx(0.27, abs=0.005),
        pytest.approx(0.13, abs=0.005),
    )
    assert cold.max().item() == pytest.approx(0.98, abs=0.005)


@given(
    seed=st.integers(0, 99), n_students=st.integers(1, 5), temperature=st.sampled_from([0.01, 0.3, 1.0, 9.0])
)
def test_the_students_of_each_teacher_head_sum_to_one(seed, n_students, temperature):
    weights = alignment_weights(random_gram(seed, n_students), temperature)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, dtype=torch.float64))


@given(seed=st.integers(0, 99), factor=st.sampled_from([1e-6, 0.1, 50.0]))
def test_the_size_of_a_map_does_not_matter(seed, factor):
    gram = random_gram(seed)
    scaled = AttentionGram(gram.cross * factor, gram.student, gram.teacher_norm * factor**2)
    torch.testing.assert_close(alignment_weights(scaled), alignment_weights(gram))


def test_a_map_of_zeros_gives_a_uniform_alignment_and_no_gradient():
    student = torch.zeros(1, 3, 4, requires_grad=True)
    weights = alignment_weights(gram_of(student, torch.rand(1, 2, 4)))
    torch.testing.assert_close(weights, torch.full((1, 2, 3), 1 / 3))
    weights.square().sum().backward()
    assert (student.grad == 0).all()


def test_gradients_are_right():
    gram = random_gram(0)
    inputs = [gram.cross.clone().requires_grad_(), gram.student.clone().requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda cross, student: alignment_weights(AttentionGram(cross, student, gram.teacher_norm), 0.5),
        inputs,
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_cannot_divide_is_refused(temperature):
    with pytest.raises(RecipeError, match="temperature"):
        alignment_weights(random_gram(0), temperature)
