"""Texts of the pre-training tasks: sentences with gaps, and draws that depend on numbers alone."""

from collections.abc import Collection

from amad.data.sampling import uniform

N_SENTINELS = 100
"""Gaps that one text can have: ``<extra_id_0>`` to ``<extra_id_99>``, as in T5."""


class Draws:
    """Random numbers that depend on the keys alone: the n-th is the same in any process and any order of items."""

    def __init__(self, *keys: int) -> None:
        self._keys = keys
        self._count = 0

    def __call__(self) -> float:
        """The next number, from 0 to below 1."""
        self._count += 1
        return uniform(*self._keys, self._count)

    def below(self, n: int) -> int:
        """A whole number from 0 to below ``n``."""
        return int(self() * n)

    def choose(self, n: int, k: int) -> list[int]:
        """``k`` different whole numbers from 0 to below ``n``, every such set equally likely, in rising order."""
        order = list(range(n))
        for position in range(k):
            other = position + self.below(n - position)
            order[position], order[other] = order[other], order[position]
        return sorted(order[:k])


def n_masked(n_words: int, ratio: float) -> int:
    """How many words of a text are left out: ``ratio`` of them, rounded down, at least one."""
    return min(max(int(ratio * n_words), 1), n_words, N_SENTINELS)


def span_prediction(text: str, masked: Collection[int]) -> tuple[str, str]:
    """A text with gaps, and what fills them.

    Words are what white space separates. Masked words that are neighbours make one span. In the text, span i
    becomes ``<extra_id_i>``; the target lists the spans, each after its sentinel:

        "a red bus on a road", {1, 2, 5}  ->  "a <extra_id_0> on a <extra_id_1>",
                                              "<extra_id_0> red bus <extra_id_1> road"

    Raffel et al. 2020 (arXiv:1910.10683), section 3.1.4, without a closing sentinel and with words masked one by
    one, as VL-T5 does it (Cho et al. 2021, arXiv:2102.02779, section 4.1).

    Args:
        text: A sentence.
        masked: Numbers of the words to leave out, from 0.
    """
    words = text.split()
    source: list[str] = []
    target: list[str] = []
    n_spans = 0
    for position, word in enumerate(words):
        if position not in masked:
            source.append(word)
            continue
        if position == 0 or position - 1 not in masked:
            sentinel = f"<extra_id_{n_spans}>"
            n_spans += 1
            source.append(sentinel)
            target.append(sentinel)
        target.append(word)
    return " ".join(source), " ".join(target)
