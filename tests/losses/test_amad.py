"""The laws of the method, for every variant."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amad.axes import SiteKey, SitePair
from amad.capture.record import TokenLayout
from amad.errors import CaptureError, RecipeError, ShapeError
from amad.losses.amad import AttentionAlignment
from amad.losses.objective import Captured, Targets

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
import plain

SITE = plain.SITE
PAIR = SitePair(SITE, SITE)
VARIANTS = ("mse", "kl", "projected", "token")
NO_TARGETS = Targets(torch.full((1, 1), -100))

variants = st.sampled_from(VARIANTS)
masks = st.sampled_from(plain.MASKS)
extras = st.sampled_from(plain.EXTRAS)
sizes = st.integers(1, 6)
heads = st.integers(1, 4)


def term(variant="kl", records=None, **arguments):
    made = AttentionAlignment([PAIR], variant=variant, **arguments)
    if records is not None:
        made.prepare({SITE: records[0]})
        for projection in made.projections.values():
            torch.nn.init.normal_(projection.weight, std=0.5)
            torch.nn.init.normal_(projection.bias, mean=0.2, std=0.2)
    return made


def losses(made, student, teacher):
    return made.pair_loss(PAIR, student, teacher)


def total(made, student, teacher):
    return made(Captured(None, {SITE: student}), Captured(None, {SITE: teacher}), NO_TARGETS).total


def plain_projection(made, student, teacher):
    """S~ of the method, for samples without padding."""
    (layer,) = made.projections.values()
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()

    def project(maps):
        rows = maps if layer.form == "factored" else maps.flatten(1)
        return (rows @ weight.T + bias).relu().view(maps.shape)

    return project


# ---------------------------------------------------------------------- values


def test_a_case_worked_by_hand():
    """One row, two keys; teacher heads (1/2, 1/2) and (1, 0), student heads (1, 0) and (0, 1).

    Cosines: 1/sqrt2 with both, so a_1 = (1/2, 1/2): the mixture is (1/2, 1/2) and its KL is 0. For the second, 1
    and 0: a_2 = (e, 1) / (e + 1), the mixture is a_2 itself and KL = log(1 / a_21) = log(1 + 1/e). For mse the maps
    of norm one give |(1,1)/sqrt2 - (1/2,1/2)|^2 = (1/sqrt2 - 1/2)^2 * 2 and |(1,0) - a_2|^2 = 2 / (1 + e)^2.
    """
    teacher = plain.from_maps(torch.tensor([[[[0.5, 0.5]], [[1.0, 0.0]]]], dtype=torch.float64))
    student = plain.from_maps(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=torch.float64))
    kl = math.log(1 + math.exp(-1))
    mse = 2 * (math.sqrt(0.5) - 0.5) ** 2 + 2 / (1 + math.e) ** 2
    assert losses(term("kl"), student, teacher).item() == pytest.approx(kl, abs=1e-12)
    assert losses(term("token"), student, teacher).item() == pytest.approx(kl, abs=1e-12)
    assert losses(term("mse"), student, teacher).item() == pytest.approx(mse, abs=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", plain.MASKS)
@pytest.mark.parametrize("extra", plain.EXTRAS)
def test_the_value_from_queries_and_keys_is_the_value_from_dense_maps(variant, mask, extra):
    student = plain.make_record(2, mask=mask, extra=extra, seed=1)
    teacher = plain.make_record(4, mask=mask, extra=extra, seed=2, width=2)
    made = term(variant, (student, teacher), projection="factored", temperature=0.3)
    project = plain_projection(made, student, teacher) if variant == "projected" else None
    if project is not None and mask != "none":
        hidden = [
            [[plain.sees(student, b, h, q, k) for k in range(5)] for q in range(5)]
            for b in (0, 1)
            for h in (0, 1)
        ]
        visible = torch.tensor(hidden).view(2, 2, 5, 5)
        samples = iter(range(2))

        def project(maps, inner=project):
            sample = next(samples)
            rows = plain.kept_rows(student, teacher, sample)
            return inner(maps) * visible[sample][:, rows]

    expected = plain.plain_losses(student, teacher, variant, 0.3, project)
    torch.testing.assert_close(losses(made, student, teacher), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_agrees_with_float64(variant):
    student, teacher = (plain.make_record(h, 8, 8, mask="keep", seed=h) for h in (2, 4))
    made = term(variant, (student, teacher))
    narrow = [dataclasses.replace(r, query=r.query.float(), key=r.key.float()) for r in (student, teacher)]
    expected = losses(made, student, teacher)
    found = losses(made, *narrow)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_changes_nothing(variant):
    student, teacher = (plain.make_record(h, seed=h, dtype=torch.float32, grad=h == 2) for h in (2, 4))
    made = term(variant, (student, teacher))
    expected = losses(made, student, teacher)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student.query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses(made, student, teacher)
    (gradient,) = torch.autograd.grad(found.sum(), student.query)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_projected_starts_as_kl():
    student, teacher = plain.make_record(2, mask="bool", seed=1), plain.make_record(3, mask="bool", seed=2)
    for form in ("full", "factored"):
        made = AttentionAlignment(
            [PAIR], variant="projected", projection=form, projection_shapes={PAIR: (5, 5)}
        )
        torch.testing.assert_close(losses(made, student, teacher), losses(term("kl"), student, teacher))


# ---------------------------------------------------------------------- laws


@given(
    variant=variants, mask=masks, extra=extras, n_students=heads, n_teachers=heads, seed=st.integers(0, 99)
)
def test_the_order_of_heads_does_not_matter(variant, mask, extra, n_students, n_teachers, seed):
    student = plain.make_record(n_students, mask=mask, extra=extra, seed=seed, grad=True)
    teacher = plain.make_record(n_teachers, mask=mask, extra=extra, seed=seed + 1)
    made = term(variant, (student, teacher))
    generator = torch.Generator().manual_seed(seed)
    of_teacher = torch.randperm(n_teachers, generator=generator)
    of_student = torch.randperm(n_students, generator=generator)
    loss = losses(made, student, teacher).sum()
    moved_teacher = losses(made, student, plain.with_heads(teacher, of_teacher)).sum()
    torch.testing.assert_close(moved_teacher, loss)
    (gradient,) = torch.autograd.grad(loss, student.query)
    moved = plain.with_heads(student, of_student)
    moved = dataclasses.replace(moved, query=moved.query.detach().requires_grad_(), key=moved.key.detach())
    moved_loss = losses(made, moved, teacher).sum()
    torch.testing.assert_close(moved_loss, loss)
    (moved_gradient,) = torch.autograd.grad(moved_loss, moved.query)
    torch.testing.assert_close(moved_gradient, gradient[:, of_student], atol=1e-10, rtol=1e-7)


@given(
    variant=variants,
    mask=masks,
    extra=extras,
    n_students=heads,
    n_teachers=heads,
    n_queries=sizes,
    n_keys=sizes,
    sharpness=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_values_and_gradients_are_finite_and_bounded(
    variant, mask, extra, n_students, n_teachers, n_queries, n_keys, sharpness, seed, dtype
):
    """One key, one row, one head, equal maps, maps that are zero or one, masks of -inf and rows without any key."""
    shape = {"n_queries": n_queries, "n_keys": n_keys, "mask": mask, "extra": extra, "dtype": dtype}
    student = plain.make_record(n_students, **shape, seed=seed, sharpness=sharpness, grad=True)
    teacher = plain.make_record(n_teachers, **shape, seed=seed, sharpness=sharpness)
    made = term(variant, (student, teacher), temperature=0.1)
    loss = losses(made, student, teacher)
    assert torch.isfinite(loss).all()
    assert (loss >= -1e-5 * n_teachers).all()
    if variant == "mse":
        assert (loss <= 2 * n_teachers + 1e-5).all()
    else:
        assert (loss <= n_teachers * -math.log(1e-30)).all()
    inputs = [x for x in (student.query, student.key, student.position_bias) if x is not None]
    for gradient in torch.autograd.grad(loss.sum(), inputs, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@given(variant=variants, mask=masks, n_students=heads, seed=st.integers(0, 99))
def test_more_padding_changes_nothing(variant, mask, n_students, seed):
    """Three more keys that nobody may attend, and three more queries that are no tokens."""
    n, more = 4, 3
    student = plain.make_record(n_students, n, n, mask="bool", seed=seed, dtype=torch.float32, grad=True)
    teacher = plain.make_record(3, n, n, mask="bool", seed=seed + 1, dtype=torch.float32)

    made = AttentionAlignment([PAIR], variant=variant, projection_shapes={PAIR: (n, n)})
    longer = AttentionAlignment([PAIR], variant=variant, projection_shapes={PAIR: (n + more, n + more)})
    loss = losses(made, student, teacher)
    padded_loss = losses(longer, plain.padded(student, more), plain.padded(teacher, more))
    torch.testing.assert_close(padded_loss, loss, atol=1e-6, rtol=1e-6)
    one, other = (torch.autograd.grad(x.sum(), (student.query, student.key)) for x in (loss, padded_loss))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@given(variant=st.sampled_from(("mse", "kl", "token")), mask=masks, extra=extras, seed=st.integers(0, 99))
def test_equal_heads_cost_nothing_as_the_temperature_goes_to_zero(variant, mask, extra, seed):
    student = plain.make_record(4, mask=mask, extra=extra, seed=seed)
    teacher = dataclasses.replace(student)
    cold = [losses(term(variant, temperature=t), student, teacher).max() for t in (1e-5, 1e-7)]
    assert cold[1] < 1e-6
    assert cold[1] <= cold[0] + 1e-9


@pytest.mark.parametrize("variant", ["mse", "kl"])
def test_equal_heads_cost_something_at_the_temperature_of_the_paper(variant):
    """At temperature 1 even the most alike head gets at most e / (e + Hs - 1)."""
    student = plain.make_record(4, 6, 6, seed=3, sharpness=3.0)
    assert (losses(term(variant), student, dataclasses.replace(student)) > 0.3).all()


def test_one_student_head_equal_to_every_teacher_head_costs_nothing():
    student = plain.make_record(1, seed=4)
    teacher = dataclasses.replace(
        student, query=student.query.expand(-1, 3, -1, -1), key=student.key.expand(-1, 3, -1, -1)
    )
    for variant in ("mse", "kl", "token"):
        torch.testing.assert_close(
            losses(term(variant), student, teacher), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0
        )


def test_the_minimum_of_kl_is_at_the_teacher_and_not_at_its_root():
    """One teacher and one student head; equation 9 on maps of norm one prefers S proportional to the root of T."""
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)[None, None]
    root = rows.sqrt() / rows.sqrt().sum(-1, keepdim=True)

    def literal(student):
        t, s = rows.flatten() / rows.norm(), student.flatten() / student.norm()
        return (t * (t / s).log()).sum()

    # What is wrong with the literal form: the root of the teacher is better than the teacher, and below zero.
    assert literal(rows.sqrt()) < literal(rows) - 1e-3
    assert literal(rows.sqrt()) < 0
    made = term("kl")
    teacher = plain.from_maps(rows)
    assert losses(made, plain.from_maps(rows), teacher).item() == pytest.approx(0, abs=1e-12)
    assert losses(made, plain.from_maps(root), teacher).item() > 0.01
    start = plain.from_maps(root)
    scores = start.query.clone().requires_grad_()
    optimiser = torch.optim.Adam([scores], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        losses(made, dataclasses.replace(start, query=scores), teacher).sum().backward()
        optimiser.step()
    torch.testing.assert_close(scores.softmax(-1), rows, atol=1e-3, rtol=0)


def test_kl_does_not_make_the_heads_of_the_student_all_the_same():
    """Two kinds of teacher heads, two student heads, a low temperature: each takes one kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(1, 2, 8, 8, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    teacher = plain.from_maps(kinds[:, [0, 1, 0, 1]])
    start = torch.randn(1, 2, 8, 8, generator=generator, dtype=torch.float64)
    scores = start.clone().requires_grad_()
    made = term("kl", temperature=0.1)
    optimiser = torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        student = plain.from_maps(torch.full((1, 2, 8, 8), 0.5, dtype=torch.float64))
        student = dataclasses.replace(student, query=scores)
        loss = losses(made, student, teacher).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    figures = made.diagnose(Captured(None, {SITE: student}), Captured(None, {SITE: teacher}))[PAIR]
    assert figures.collapse < 0.6
    assert figures.coverage < 0.1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("extra", plain.EXTRAS)
def test_gradients_are_right(variant, extra):
    student = plain.make_record(2, 3, 4, mask="float", extra=extra, seed=5, width=2)
    teacher = plain.make_record(3, 3, 4, mask="keep", seed=6, width=2)
    made = term(variant, (student, teacher), projection="factored").double()
    for layer in made.projections.values():
        torch.nn.init.uniform_(layer.weight, 0.1, 0.5)
    inputs = {"query": student.query, "key": student.key}
    if student.position_bias is not None:
        inputs["position_bias"] = student.position_bias
    parameters = dict(made.named_parameters())

    def loss(*values):
        record = dataclasses.replace(student, **dict(zip(inputs, values, strict=False)))
        given_parameters = dict(zip(parameters, values[len(inputs) :], strict=True))
        buffers = dict(made.named_buffers())
        call = (Captured(None, {SITE: record}), Captured(None, {SITE: teacher}), NO_TARGETS)
        return torch.func.functional_call(made, {**given_parameters, **buffers}, call).total

    values = [x.detach().clone().requires_grad_() for x in (*inputs.values(), *parameters.values())]
    assert torch.autograd.gradcheck(loss, values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_detaching_the_alignment_keeps_the_value_and_changes_the_gradient(variant):
    student, teacher = plain.make_record(2, seed=1, grad=True), plain.make_record(3, seed=2)
    made = term(variant, (student, teacher))
    stopped = AttentionAlignment([PAIR], variant=variant, detach_alignment=True)
    stopped.load_state_dict(made.state_dict())
    loss, constant = losses(made, student, teacher).sum(), losses(stopped, student, teacher).sum()
    torch.testing.assert_close(loss, constant)
    (moving,) = torch.autograd.grad(loss, student.query)
    (still,) = torch.autograd.grad(constant, student.query)
    assert (moving - still).abs().max() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_without_a_real_row_gives_zero_and_zero_gradient(variant):
    student, teacher = plain.make_record(2, seed=1, grad=True), plain.make_record(3, seed=2)
    keep = torch.ones(2, 5, dtype=torch.bool)
    keep[1] = False
    for empty in (
        (dataclasses.replace(student, query_keep=keep), teacher),
        (student, dataclasses.replace(teacher, query_keep=keep)),
        (dataclasses.replace(student, mask=keep[:, None, :1, None].expand(2, 1, 5, 5)), teacher),
    ):
        loss = losses(term(variant, (student, teacher)), *empty)
        assert loss[1] == 0
        assert loss[0] != 0
        query, key = torch.autograd.grad(loss.sum(), (student.query, student.key))
        assert (query[1] == 0).all()
        assert (key[1] == 0).all()
        assert torch.isfinite(query).all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = plain.make_record(2, seed=1, grad=True), plain.make_record(3, seed=2, grad=True)
    for variant in VARIANTS:
        total(term(variant, (student, teacher)), student, teacher).backward()
        assert teacher.query.grad is None


# ---------------------------------------------------------------------- pairs


def test_pairs_are_averaged_with_their_weights():
    other = SiteKey("decoder.self", 1)
    records = {SITE: plain.make_record(2, seed=1), other: plain.make_record(2, seed=2)}
    teachers = {SITE: plain.make_record(3, seed=3)}
    pairs = [SitePair(SITE, SITE, 2.0), SitePair(other, SITE, 0.5), SitePair(other, SITE, 0.0)]
    targets = Targets(torch.zeros(2, 1, dtype=torch.long))
    found = AttentionAlignment(pairs)(Captured(None, records), Captured(None, teachers), targets)
    one, two = (losses(term("kl"), records[key], teachers[SITE]).sum() for key in (SITE, other))
    torch.testing.assert_close(found.total.double(), (2.0 * one + 0.5 * two) / 3)
    assert found.unit == "sample"


def test_a_site_that_was_not_recorded_is_named():
    with pytest.raises(CaptureError, match=r"encoder.self\[0\] of the teacher was not recorded, but none"):
        term()(Captured(None, {SITE: plain.make_record()}), Captured(), NO_TARGETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "cosine"}, "variant 'cosine' is none of mse, kl, projected, token"),
        ({"projection": "half"}, "projection 'half' is none of full, factored"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"pairs": []}, "there are none"),
        ({"pairs": [SitePair(SITE, SITE, -1.0)]}, "weight of .* is -1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    # The shape checks of the tests would refuse a wrong word first.
    make = getattr(AttentionAlignment.__init__, "__wrapped__", AttentionAlignment.__init__)
    with pytest.raises(RecipeError, match=message):
        make(AttentionAlignment.__new__(AttentionAlignment), **({"pairs": [PAIR]} | arguments))


# ---------------------------------------------------------------------- unequal tokens


def test_a_finer_teacher_with_a_class_token_teaches_a_coarser_student():
    student_layout, teacher_layout = TokenLayout(0, 2, 2), TokenLayout(1, 4, 4)
    student = dataclasses.replace(
        plain.make_record(2, 4, 4, seed=1, grad=True), query_layout=student_layout, key_layout=student_layout
    )
    teacher = dataclasses.replace(
        plain.make_record(3, 17, 17, seed=2), query_layout=teacher_layout, key_layout=teacher_layout
    )
    for variant in VARIANTS:
        loss = losses(term(variant, (student, teacher)), student, teacher)
        assert torch.isfinite(loss).all()
        assert (loss > 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), student.query)
        assert gradient.abs().max() > 0


def test_other_tokens_without_a_grid_are_refused_with_both_shapes():
    with pytest.raises(ShapeError, match="5 x 5 and 6 x 7"):
        losses(term(), plain.make_record(2), plain.make_record(2, 6, 7))
