"""The attention term of each method by the method's name."""

from collections.abc import Sequence

from amad.axes import SitePair
from amad.losses.aligned import AlignedAttention
from amad.losses.amad import AttentionAlignment
from amad.losses.head_mean import HeadMean
from amad.losses.learned import LearnedMixture
from amad.losses.pairs import PairTerm, check_choice
from amad.losses.relations import Relations
from amad.losses.rivals import AssignedHeads, MeanOfHeads, NearestHead, OneToOne
from amad.losses.squeezed import SqueezedHeads
from amad.losses.variants import VARIANTS

_MIXTURES: dict[str, type[AlignedAttention]] = {
    "one_to_one": OneToOne,
    "mean": MeanOfHeads,
    "nearest": NearestHead,
    "assigned": AssignedHeads,
    "head_mean": HeadMean,
    "learned": LearnedMixture,
    "squeezed": SqueezedHeads,
}


def attention_term(
    pairs: Sequence[SitePair],
    method: str = "amad",
    variant: str = "kl",
    *,
    temperature: float = 1.0,
    detach_alignment: bool = False,
    projection: str = "full",
    relation_heads: int | None = None,
) -> PairTerm:
    """The term of a method; the names are those of :data:`amad.losses.variants.VARIANTS`.

    Args:
        pairs: The sites to compare.
        method: Which method.
        variant: Which of its losses.
        temperature: For ``amad``; see :class:`amad.losses.amad.AttentionAlignment`.
        detach_alignment: Likewise.
        projection: Likewise.
        relation_heads: For ``relations``; see :class:`amad.losses.relations.Relations`.

    Raises:
        RecipeError: if the method is unknown or has no such variant, or an argument is out of its range.
    """
    check_choice("method", method, list(VARIANTS))
    check_choice(f"variant of method {method!r},", variant, VARIANTS[method])
    if method == "amad":
        return AttentionAlignment(
            pairs,
            variant=variant,  # type: ignore[arg-type]
            temperature=temperature,
            detach_alignment=detach_alignment,
            projection=projection,  # type: ignore[arg-type]
        )
    if method == "relations":
        return Relations(pairs, relation_heads=relation_heads)
    return _MIXTURES[method](pairs, variant=variant)
