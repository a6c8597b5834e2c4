"""Examples that teacher and student answer; with real runs they are tested from the command line."""

from amad.evaluation.examples import PICTURED, SEEN, _to_look_at, _to_picture, _with_one_target


def row(index, student, teacher):
    scores = {"student_score": float(student == "red"), "teacher_score": float(teacher == "red")}
    return {"index": index, "student": student, "teacher": teacher} | scores


def test_of_several_targets_the_best_is_read_by_the_decoder():
    item = {"text": "what color?", "targets": ("blue", "red", "green"), "weights": (0.3, 0.6, 0.1)}
    assert _with_one_target(item) == {"text": "what color?", "targets": ("red",), "weights": (0.6,)}
    assert _with_one_target({"target": "red"}) == {"target": "red"}


def test_half_of_what_is_looked_at_is_where_the_student_fails():
    rows = [row(index, "blue" if index % 10 == 0 else "red", "red") for index in range(100)]
    seen = _to_look_at(rows)
    assert len(seen) == SEEN
    assert [one["index"] for one in seen] == sorted({one["index"] for one in seen})
    assert sum(one["student"] == "blue" for one in seen) >= SEEN // 2


def test_fewer_examples_than_are_looked_at_are_all_looked_at():
    rows = [row(0, "blue", "red"), row(1, "red", "red")]
    assert _to_look_at(rows) == rows


def test_each_kind_of_difference_has_pictures():
    kinds = {
        "teacher": ("blue", "red"),
        "student": ("red", "blue"),
        "neither": ("blue", "green"),
        "same": ("red", "red"),
    }
    rows = [row(index, *kinds[kind]) for index in range(40) for kind in kinds]
    shown = [(one["student"], one["teacher"]) for one in _to_picture(rows)]
    assert [shown.count(said) for said in kinds.values()] == [PICTURED, PICTURED, PICTURED, 0]
