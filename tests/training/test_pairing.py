import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.axes import SiteKey
from amad.errors import PairingError
from amad.training.pairing import Pairing


def sites(**counts):
    return [SiteKey(stack.replace("_", "."), layer) for stack, n in counts.items() for layer in range(n)]


def layers(pairing):
    return [(pair.student.layer, pair.teacher.layer) for pair in pairing]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", [(0, 1), (1, 3)]),
        ("last", [(0, 2), (1, 3)]),
        ("first", [(0, 0), (1, 1)]),
        ([(0, 0), (1, 2), (1, 3)], [(0, 0), (1, 2), (1, 3)]),
    ],
)
def test_two_student_layers_of_four_teacher_layers(rule, expected):
    assert (
        layers(Pairing.make(sites(encoder_self=2), sites(encoder_self=4), {"encoder.self": rule})) == expected
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform", [(1, 2), (3, 5)]),
        ("last", [(1, 4), (3, 5)]),
        ("first", [(1, 1), (3, 2)]),
        ([(3, 4)], [(3, 4)]),
    ],
)
def test_of_a_stack_given_in_part_only_the_given_layers_are_paired(rule, expected):
    student = [SiteKey("text.self", layer) for layer in (1, 3)]
    teacher = [SiteKey("text.self", layer) for layer in (5, 1, 2, 4)]
    assert layers(Pairing.make(student, teacher, rule)) == expected
    with pytest.raises(PairingError, match="the teacher has layers 1, 2, 4, 5"):
        Pairing.make(student, teacher, [(1, 3)])


@given(st.integers(1, 24), st.integers(1, 48))
def test_uniform_is_in_order_in_range_and_ends_at_the_last_layer(n_student, n_teacher):
    chosen = [t for _, t in layers(Pairing.make(sites(vision_self=n_student), sites(vision_self=n_teacher)))]
    assert chosen == sorted(chosen)
    assert min(chosen) >= 0
    assert chosen[-1] == n_teacher - 1
    if n_student <= n_teacher:
        assert len(set(chosen)) == n_student


def test_only_stacks_that_both_models_have_are_paired_by_default():
    pairing = Pairing.make(sites(vision_self=2, decoder_self=2), sites(vision_self=4, encoder_self=4))
    assert {pair.student.stack for pair in pairing} == {"vision.self"}


def test_weights_choose_stacks_and_travel_with_the_pairs():
    pairing = Pairing.make(
        sites(encoder_self=1, decoder_self=1),
        sites(encoder_self=2, decoder_self=2),
        weights={"decoder.self": 0.25},
    )
    assert [(pair.student.stack, pair.weight) for pair in pairing] == [("decoder.self", 0.25)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"text.self": 1.0}}, r"'text.self' is not in the student, which has encoder.self"),
        ({"rule": {"decoder.cross": "last"}}, r"'decoder.cross' is not in the student"),
        ({"rule": {"encoder.self": [(0, 4)]}}, r"teacher layer 4, but the teacher has layers 0 to 3"),
        ({"rule": {"encoder.self": []}}, r"lists no pair"),
        ({"rule": "diagonal"}, r"'diagonal'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(arguments, message):
    with pytest.raises(PairingError, match=message):
        Pairing.make(sites(encoder_self=2), sites(encoder_self=4), **arguments)


def test_models_without_a_common_stack_are_refused():
    with pytest.raises(PairingError, match=r"the student has vision\.self, the teacher has text\.self"):
        Pairing.make(sites(vision_self=1), sites(text_self=1))


def test_a_deeper_student_cannot_take_the_last_layers():
    with pytest.raises(PairingError, match="2 < 3"):
        Pairing.make(sites(text_self=3), sites(text_self=2), "last")


def test_important_layers_are_chosen_by_worth_and_kept_in_order():
    worth = {SiteKey("encoder.self", layer): value for layer, value in enumerate([0.8, 0.1, 0.3, 0.0])}
    pairing = Pairing.make(
        sites(encoder_self=2), sites(encoder_self=4), "important", importance=lambda stack: worth
    )
    assert layers(pairing) == [(0, 0), (1, 2)]
    flipped = {key: -value for key, value in worth.items()}
    pairing = Pairing.make(
        sites(encoder_self=2), sites(encoder_self=4), "important", importance=lambda stack: flipped
    )
    assert layers(pairing) == [(0, 1), (1, 3)]


def test_in_a_decoder_the_layers_that_matter_may_make_room_for_the_last():
    worth = {
        SiteKey(stack, layer): float(-layer)
        for stack in ("encoder.self", "encoder.cross", "decoder.self", "decoder.cross")
        for layer in range(4)
    }
    given = dict.fromkeys(("encoder_self", "encoder_cross", "decoder_self", "decoder_cross"), 2)
    pairing = Pairing.make(
        sites(**given), sites(**dict.fromkeys(given, 4)), "important-encoder", importance=lambda stack: worth
    )
    for pair in pairing:
        layer = pair.student.layer
        in_decoder = pair.student.stack.startswith("decoder")
        assert pair.teacher.layer == (2 * layer + 1 if in_decoder else layer)


def test_importance_is_measured_of_the_stacks_whose_rule_needs_it():
    asked = []

    def measure(stack):
        asked.append(stack)
        return dict.fromkeys(sites(encoder_self=4, decoder_self=4), 1.0)

    given = {"encoder_self": 2, "decoder_self": 2}
    Pairing.make(
        sites(**given), sites(**dict.fromkeys(given, 4)), {"encoder.self": "important"}, importance=measure
    )
    assert asked == ["encoder.self"]


def test_importance_is_measured_only_where_a_rule_needs_it():
    def never():
        raise AssertionError("measured")

    assert len(Pairing.make(sites(encoder_self=2), sites(encoder_self=4), "uniform", importance=never)) == 2
    with pytest.raises(PairingError, match="needs the importance"):
        Pairing.make(sites(encoder_self=2), sites(encoder_self=4), "important")
