"""The Triton kernels, run by Triton's interpreter on the CPU, beside the definition in float64.

`test_triton.py` runs this file in a process of its own, as the interpreter must be asked for before Triton is imported:

    TRITON_INTERPRET=1 pytest tests/ops/triton_cases.py

The interpreter shows what kernels compute, not whether a GPU takes them (`test_triton_compile.py`) nor how two
programs race. It multiplies bfloat16 wrongly, so 16 bits are tested as float16.
"""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from amad.errors import RecipeError, ShapeError
from amad.ops.aligned_kl import reference as kl_reference
from amad.ops.aligned_kl import triton as kl_triton
from amad.ops.attention_gram import reference as gram_reference
from amad.ops.attention_gram import triton as gram_triton
from amad.ops.bands import configs, kernels, launch, pair, products, unsupported

sys.path.insert(0, str(Path(__file__).parent))
import plain

assert isinstance(kernels.lse_kernel, InterpretedFunction), "set TRITON_INTERPRET=1"

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

OPERATORS = ("gram", "kl", "token")
LEAVES = ("query", "key", "position_bias", "mask", "sinks")
CASES = [
    *((mask, plain.EXTRAS[i % len(plain.EXTRAS)]) for i, mask in enumerate(plain.MASKS)),
    ("bool", "grouped"),
    ("causal", "bias"),
    ("causal", "sinks"),
    ("window", "softcap"),
]


def run(operator, student, teacher, alignment, is_reference, temperature=0.5, detach=False):
    """Values of an operator that gradients flow from."""
    if operator == "gram":
        form = gram_reference if is_reference else gram_triton
        gram = form.attention_gram(student, teacher)
        assert not gram.teacher_norm.requires_grad
        return gram
    form = kl_reference if is_reference else kl_triton
    if operator == "kl":
        return (form.aligned_kl(student, teacher, alignment),)
    return (form.row_aligned_kl(student, teacher, temperature, detach),)


def tensors_of(record):
    tensors = {name: getattr(record, name) for name in LEAVES}
    return [name for name, tensor in tensors.items() if tensor is not None and tensor.is_floating_point()]


def in_double(record):
    fields = {
        name: value.detach().double()
        for name, value in vars(record).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return dataclasses.replace(record, **fields)


def with_gradients(record):
    fields = {name: getattr(record, name).detach().requires_grad_() for name in tensors_of(record)}
    return dataclasses.replace(record, **fields)


def results(operator, student, teacher, is_reference, alignment=None, **options):
    """Values and gradients under weights that differ from head to head and sample to sample."""
    student = with_gradients(student)
    shape = student.n_batch, teacher.n_heads, student.n_heads
    generator = torch.Generator().manual_seed(5)
    if alignment is None:
        alignment = torch.randn(shape, generator=generator).softmax(-1)
    alignment = alignment.to(student.query.dtype).requires_grad_()
    values = run(operator, student, teacher, alignment, is_reference, **options)
    weights = [torch.randn(value.shape, generator=generator).to(value.dtype) for value in values]
    total = sum((value * weight).sum() for value, weight in zip(values[:2], weights, strict=False))
    leaves = {name: getattr(student, name) for name in tensors_of(student)}
    if operator == "kl":
        leaves["alignment"] = alignment
    gradients = torch.autograd.grad(total, list(leaves.values()))
    named = {f"value {i}": value.detach() for i, value in enumerate(values)}
    return named | dict(zip(leaves, gradients, strict=True))


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-12))


def check(operator, student, teacher, most=1e-5, **options):
    found = results(operator, student, teacher, False, **options)
    expected = results(operator, in_double(student), in_double(teacher), True, **options)
    for name, value in found.items():
        assert value.dtype == (getattr(student, name).dtype if name in LEAVES else torch.float32)
        if operator != "gram" and name == "sinks":
            # Rows divided by their sums do not depend on them.
            assert (value == 0).all()
            assert expected[name].abs().max() < 1e-12
        else:
            assert error(value, expected[name]) < most, name
    return found


def records(mask="none", extra="plain", n_queries=5, n_keys=9, dtype=torch.float32, heads=(2, 3), **fields):
    student = plain.make_record(
        heads[0], n_queries, n_keys, mask, extra, seed=1, width=5, dtype=dtype, **fields
    )
    teacher = plain.make_record(
        heads[1], n_queries, n_keys, mask, extra, seed=2, width=17, dtype=dtype, **fields
    )
    return student, teacher


@pytest.mark.parametrize(("mask", "extra"), CASES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_in_float32_it_is_the_definition(operator, mask, extra):
    check(operator, *records(mask, extra))


@pytest.fixture
def small_tiles(monkeypatch):
    """Every loop runs several times: tiles of 16, chunks and parts of 32, and a workspace of 16 rows of one sample."""
    monkeypatch.setattr(launch, "head_config", lambda *_: configs.Config(16, 16, 4, 1))
    monkeypatch.setattr(products, "heads_config", lambda *_: configs.Config(0, 16, 4, 1))
    monkeypatch.setattr(products, "CHUNK", 32)
    monkeypatch.setattr(launch, "_part", lambda *_: 32)
    monkeypatch.setattr(pair, "WORKSPACE_BYTES", 1)


@pytest.mark.parametrize(("operator", "mask"), [("gram", "causal"), ("kl", "window"), ("token", "causal")])
@pytest.mark.usefixtures("small_tiles")
def test_bands_and_tiles_change_nothing(operator, mask):
    """Two bands, of which causal ones have other lengths; a key head for two query heads; and twice the same bits."""
    student, teacher = records(mask, "grouped", 20, 37, heads=(2, 1), n_batch=1)
    once = check(operator, student, teacher)
    again = results(operator, student, teacher, False)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_long_rows_are_dealt_to_more_programs():
    assert launch._part(n_programs=36, n_keys=4096, block=64) == 320
    assert launch._part(n_programs=1000, n_keys=4096, block=64) == 4096
    assert launch._part(n_programs=1, n_keys=208, block=64) == 256


def test_a_band_takes_as_many_samples_or_rows_as_fit(monkeypatch):
    student, teacher = records("causal", "plain", 40, 40, n_batch=5)
    both = pair.Pair.of(*pair.prepared(student, teacher), whole=True)
    monkeypatch.setattr(pair, "WORKSPACE_BYTES", 5 * 48 * 4 * 40 * 2)
    assert [band[:4] for band in both.bands(1)] == [(0, 2, 0, 40), (2, 2, 0, 40), (4, 1, 0, 40)]
    monkeypatch.setattr(pair, "WORKSPACE_BYTES", 5 * 48 * 4 * 40 - 1)
    bands = list(both.bands(1))
    assert [band[2:] for band in bands[:3]] == [(0, 16, 16), (16, 16, 32), (32, 8, 48)]
    assert [band.first_sample for band in bands[::3]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("operator", OPERATORS)
def test_masks_of_one_model_and_biases_of_every_shape(operator):
    student, teacher = records("per_head", "plain")
    bias = torch.randn(2, 1, 1, 9)
    teacher = dataclasses.replace(teacher, mask=None, query_keep=torch.rand(2, 5) < 0.6)
    student = dataclasses.replace(student, position_bias=bias, softcap=3.0, sinks=torch.randn(2))
    check(operator, student, teacher)


@pytest.mark.parametrize("operator", OPERATORS)
def test_rows_that_may_attend_nothing_and_a_sample_with_no_row(operator):
    """A head without a key in a row that counts, a row without one in any head of one model, a sample of padding."""
    student, teacher = records("none", "plain", n_batch=3)
    visible = torch.ones(3, 2, 5, 9, dtype=torch.bool)
    visible[0, 1, 2] = False
    visible[0, :, 4] = False
    keep = torch.ones(3, 5, dtype=torch.bool)
    keep[2] = False
    student = dataclasses.replace(student, mask=visible)
    of_teacher = torch.ones(3, 1, 5, 9, dtype=torch.bool)
    of_teacher[1, :, 3] = False
    teacher = dataclasses.replace(teacher, query_keep=keep, mask=of_teacher)
    check(operator, student, teacher)
    found = results(operator, student, teacher, False)
    for value in found.values():
        assert (value[2] == 0).all()
    assert (found["query"][0, :, 4] == 0).all()


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_query_for_a_whole_batch_is_broadcast(operator):
    student, teacher = records()
    check(operator, dataclasses.replace(student, query=student.query[:1]), teacher)


@pytest.mark.parametrize("temperature", [0.05, 2.0])
def test_a_detached_alignment_and_other_temperatures(temperature):
    check("token", *records(n_batch=1), temperature=temperature)
    check("token", *records(n_batch=1), temperature=temperature, detach=True)


@pytest.mark.parametrize("heads", [(1, 3), (20, 17)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_numbers_of_heads_that_fill_no_tile(operator, heads):
    check(operator, *records(n_queries=2, n_keys=3, heads=heads, n_batch=1))


def test_a_mixture_without_mass_counts_as_the_floor():
    """Half of the teacher's mass lies on a key that the student's mask hides; nothing flows through that key."""
    student, teacher = records(n_queries=2, n_keys=2, heads=(1, 1))
    student = dataclasses.replace(student, mask=torch.tensor([[[[True, False]]]]))
    check("kl", student, teacher)


def test_nothing_flows_through_a_mixture_below_the_floor():
    """A key that one head of the student hides, and of which another, of weight 1e-32, has half of its mass."""
    student, teacher = records(n_queries=2, n_keys=2, heads=(2, 1), n_batch=1)
    visible = torch.tensor([[True, False], [True, True]])[None, :, None, :].expand(1, 2, 2, 2)
    student = dataclasses.replace(student, mask=visible)
    check("kl", student, teacher, alignment=torch.tensor([[[1.0, 1e-32]]]))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_soft_cap_far_above_the_scores(operator):
    check(operator, *records("none", "softcap", sharpness=0.5), most=1e-6)


def as_eager_attention(record):
    """Maps as eager attention makes them in 16 bits: scores and maps rounded, the softmax in float32."""
    scores = record.query @ record.key.transpose(-1, -2) * record.scale
    maps = scores.float().softmax(-1).to(record.query.dtype)
    empty = record.query[..., :0]
    return dataclasses.replace(record, query=empty, key=record.key[..., :0], probabilities=maps)


@pytest.mark.parametrize("operator", OPERATORS)
def test_in_float16_it_errs_no_more_than_eager_attention(operator):
    student, teacher = records(
        n_queries=32, n_keys=48, dtype=torch.float16, heads=(2, 3), n_batch=1, sharpness=1.0
    )
    leaves = with_gradients(student)
    eager = as_eager_attention(leaves), as_eager_attention(teacher)
    generator = torch.Generator().manual_seed(5)
    alignment = torch.randn((1, 3, 2), generator=generator).softmax(-1).half().requires_grad_()
    values = run(operator, *eager, alignment, True)
    weights = [torch.randn(value.shape, generator=generator).to(value.dtype) for value in values]
    sum((v * w).sum() for v, w in zip(values[:2], weights, strict=False)).backward()
    by_eager = {f"value {i}": value.detach() for i, value in enumerate(values)}
    by_eager |= {"query": leaves.query.grad, "key": leaves.key.grad}
    found = results(operator, student, teacher, False)
    exact = results(operator, in_double(student), in_double(teacher), True)
    for name, value in by_eager.items():
        assert error(found[name], exact[name]) < 2 * error(value, exact[name]) + 1e-4, name


@pytest.mark.parametrize("factor", [2.0**-7, 2.0**10])
def test_in_float16_gradients_do_not_depend_on_the_scale_of_the_loss(factor):
    """Gradients of scores are stored in float16, and a loss scale would take them out of its range."""
    student, teacher = records(dtype=torch.float16, n_batch=1)
    student = with_gradients(student)
    gradients = []
    for scale in (1.0, factor):
        gram = gram_triton.attention_gram(student, teacher)
        gradients.append(torch.autograd.grad(gram.cross.sum() * scale, student.key)[0].float() / scale)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7 / factor)


def test_what_is_not_supported_is_said_in_words():
    student, teacher = records()
    assert unsupported(student, teacher) is None
    empty = dataclasses.replace(student, probabilities=student.rows())
    assert "holds a map" in unsupported(empty, teacher)
    assert "teacher's record of encoder.self" in unsupported(student, in_double(teacher))
    assert "float64" in unsupported(student, in_double(teacher))
    wide = dataclasses.replace(student, query=torch.zeros(2, 2, 5, 257), key=torch.zeros(2, 2, 9, 257))
    assert "width 257, over 256" in unsupported(wide, teacher)
    longer = records(n_keys=10)[1]
    assert "tokens of student and teacher differ" in unsupported(student, longer)


def test_bad_input_is_refused():
    student, teacher = records()
    with pytest.raises(ShapeError, match="2 and 3 samples"):
        gram_triton.attention_gram(student, records(n_batch=3)[1])
    with pytest.raises(ShapeError, match="do not take these records, as the tokens"):
        gram_triton.attention_gram(student, records(n_keys=10)[1])
    with pytest.raises(RecipeError, match=r"temperature = 0"):
        kl_triton.row_aligned_kl(student, teacher, 0.0)
