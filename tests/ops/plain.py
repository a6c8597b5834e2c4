"""Random attention records of every kind, and the method written out sample by sample, head by head, in float64.

Nothing here uses `AttentionRecord.rows` or the operators: it is what they are compared with.
"""

import dataclasses
import math

import torch

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord

SITE = SiteKey("encoder.self", 0)
MASKS = (
    "none",
    "bool",
    "per_head",
    "float",
    "ten_thousand",
    "infinite",
    "causal",
    "window",
    "segments",
    "keep",
)
EXTRAS = ("plain", "bias", "softcap", "sinks", "grouped")


def make_record(
    n_heads=2,
    n_queries=5,
    n_keys=5,
    mask="none",
    extra="plain",
    n_batch=2,
    width=3,
    seed=0,
    dtype=torch.float64,
    sharpness=1.5,
    grad=False,
):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    n_kv_heads = n_heads // 2 if extra == "grouped" and n_heads % 2 == 0 else n_heads
    fields = {
        "site": SITE,
        "query": random(n_batch, n_heads, n_queries, width).requires_grad_(grad),
        "key": random(n_batch, n_kv_heads, n_keys, width).requires_grad_(grad),
        "scale": 0.6,
    }
    if extra == "bias":
        fields["position_bias"] = random(1, n_heads, n_queries, n_keys).requires_grad_(grad)
    if extra == "softcap":
        fields["softcap"] = 2.0
    if extra == "sinks":
        fields["sinks"] = random(n_heads)
    # The last key is hidden in the last sample; the seed of the mask is fixed, as both models share the tokens.
    shared = torch.Generator().manual_seed(7)
    padding = torch.ones(n_batch, 1, 1, n_keys, dtype=torch.bool)
    padding[-1, ..., -1] = n_keys == 1
    if mask == "bool":
        fields["mask"] = padding
    elif mask == "per_head":
        visible = torch.rand(n_batch, n_heads, n_queries, n_keys, generator=shared) < 0.7
        visible[..., 0] = True
        fields["mask"] = visible
    elif mask == "float":
        added = torch.randn(n_batch, 1, n_queries, n_keys, generator=shared, dtype=torch.float64).to(dtype)
        fields["mask"] = added.masked_fill(~padding, torch.finfo(dtype).min)
    elif mask == "ten_thousand":
        # As BERT had it, and models that copied its code have it still.
        fields["mask"] = torch.zeros(n_batch, 1, 1, n_keys, dtype=dtype).masked_fill(~padding, -10000.0)
    elif mask == "infinite":
        fields["mask"] = torch.zeros(n_batch, 1, 1, n_keys, dtype=dtype).masked_fill(~padding, -math.inf)
    elif mask == "causal":
        fields["causal_offset"] = n_keys - n_queries
    elif mask == "window":
        fields["window"] = 2
    elif mask == "segments":
        fields["segments"] = (
            torch.arange(n_queries).expand(n_batch, -1) * 2 // n_queries,
            torch.arange(n_keys).expand(n_batch, -1) * 2 // n_keys,
        )
    elif mask == "keep":
        keep = torch.ones(n_batch, n_queries, dtype=torch.bool)
        keep[0, n_queries // 2 :] = False
        fields["query_keep"] = keep
    elif mask != "none":
        raise ValueError(f"no mask is called {mask!r}")
    return AttentionRecord(**fields)


def with_heads(record, order):
    """The record with its heads in another order; groups of heads are spelt out first."""
    key = record.key.repeat_interleave(record.n_heads // record.n_kv_heads, 1)[:, order]
    changes = {"query": record.query[:, order], "key": key}
    if record.position_bias is not None:
        changes["position_bias"] = record.position_bias[:, order]
    if record.sinks is not None:
        changes["sinks"] = record.sinks[order]
    if record.mask is not None and record.mask.shape[1] > 1:
        changes["mask"] = record.mask[:, order]
    return dataclasses.replace(record, **changes)


def from_maps(maps, **changes):
    """A record whose map is exactly this (batch, head, query, key), by scores of log p."""
    n_batch, n_heads, _, n_keys = maps.shape
    scores = maps.clamp(min=1e-300).log()
    eye = torch.eye(n_keys, dtype=maps.dtype).expand(n_batch, n_heads, -1, -1)
    return AttentionRecord(SITE, scores, eye, 1.0, **changes)


def padded(record, more):
    """The record and so many more tokens, hidden as keys and not kept as queries; its mask is one of True and False."""
    n_batch, n_heads, n_queries, width = record.query.shape
    garbage = 9 * torch.ones(n_batch, n_heads, more, width, dtype=record.query.dtype)
    keep = torch.zeros(n_batch, n_queries + more, dtype=torch.bool)
    keep[:, :n_queries] = True
    return dataclasses.replace(
        record,
        query=torch.cat([record.query, garbage], 2),
        key=torch.cat([record.key, garbage], 2),
        mask=torch.cat([record.mask, torch.zeros(n_batch, 1, 1, more, dtype=torch.bool)], -1),
        query_keep=keep,
    )


def sees(record, sample, head, query, key):
    """Whether this query may attend this key, from the record's fields one by one."""
    mask = record.mask
    if mask is not None:
        index = [min(i, n - 1) for i, n in zip((sample, head, query, key), mask.shape, strict=True)]
        entry = mask[tuple(index)]
        if not (bool(entry) if mask.dtype == torch.bool else float(entry) > -5000):
            return False
    if record.causal_offset is not None and key > query + record.causal_offset:
        return False
    if record.window is not None and abs(key - query - (record.n_keys - record.n_queries)) >= record.window:
        return False
    if record.segments is not None:
        queries, keys = record.segments
        if queries[min(sample, len(queries) - 1), query] != keys[min(sample, len(keys) - 1), key]:
            return False
    return True


def plain_row(record, sample, head, query):
    """One row of one map: a differentiable tensor over the keys, or None if it may attend none."""
    group = record.n_heads // record.n_kv_heads
    seen = [key for key in range(record.n_keys) if sees(record, sample, head, query, key)]
    if not seen:
        return None
    scores = []
    for key in seen:
        score = (
            record.query[sample, head, query] * record.key[sample, head // group, key]
        ).sum() * record.scale
        if record.softcap is not None:
            score = record.softcap * torch.tanh(score / record.softcap)
        if record.position_bias is not None:
            score = score + record.position_bias[0, head, query, key]
        if record.mask is not None and record.mask.dtype != torch.bool:
            index = [
                min(i, n - 1) for i, n in zip((sample, head, query, key), record.mask.shape, strict=True)
            ]
            score = score + record.mask[tuple(index)]
        scores.append(score.double())
    exponentials = torch.stack(scores).exp()
    total = exponentials.sum() + (0.0 if record.sinks is None else record.sinks[head].double().exp())
    return torch.zeros(record.n_keys, dtype=torch.float64).index_add(
        0, torch.tensor(seen), exponentials / total
    )


def kept_rows(student, teacher, sample):
    """The rows of a sample that are real tokens in both models and may attend something in both."""
    rows = []
    for query in range(student.n_queries):
        real = all(r.query_keep is None or bool(r.query_keep[sample, query]) for r in (student, teacher))
        alive = all(
            any(sees(r, sample, head, query, key) for head in range(r.n_heads) for key in range(r.n_keys))
            for r in (student, teacher)
        )
        if real and alive:
            rows.append(query)
    return rows


def plain_maps(record, sample, rows):
    """(head, row, key) of the given rows only."""
    zero = torch.zeros(record.n_keys, dtype=torch.float64)
    heads = []
    for head in range(record.n_heads):
        found = [plain_row(record, sample, head, query) for query in rows]
        heads.append(torch.stack([zero if row is None else row for row in found]))
    return torch.stack(heads)


def cosine(one, other):
    one, other = one.flatten(), other.flatten()
    return (one * other).sum() / (one.norm() * other.norm())


def plain_alignment(student, teacher, temperature):
    cosines = torch.stack([torch.stack([cosine(t, s) for s in student]) for t in teacher])
    return (cosines / temperature).softmax(-1)


def plain_kl(teacher_row, mixture_row):
    """In nats, over the keys to which the teacher gives something."""
    some = teacher_row > 0
    return (teacher_row[some] * (teacher_row[some].log() - mixture_row[some].clamp(min=1e-30).log())).sum()


def normalised(maps):
    mass = maps.sum(-1, keepdim=True)
    return maps / torch.where(mass > 0, mass, 1.0)


def plain_losses(student, teacher, variant="kl", temperature=1.0, project=None):
    """The loss of each sample, summed over the teacher's heads; ``project`` maps (student, row, key) to the same."""
    losses = []
    for sample in range(student.n_batch):
        rows = kept_rows(student, teacher, sample)
        if not rows:
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        s, t = plain_maps(student, sample, rows), plain_maps(teacher, sample, rows).detach()
        if project is not None:
            s = project(s)
        total = torch.zeros((), dtype=torch.float64)
        if variant == "mse":
            a = plain_alignment(s, t, temperature)
            for i in range(len(t)):
                mixture = sum(a[i, j] * s[j] / s[j].norm() for j in range(len(s)))
                total = total + (t[i] / t[i].norm() - mixture).square().sum()
        elif variant in ("kl", "projected"):
            a = plain_alignment(s, t, temperature)
            whole_s, whole_t = normalised(s), normalised(t)
            for i in range(len(t)):
                mixture = sum(a[i, j] * whole_s[j] for j in range(len(s)))
                total = total + sum(plain_kl(whole_t[i, q], mixture[q]) for q in range(len(rows))) / len(rows)
        elif variant == "token":
            whole_s, whole_t = normalised(s), normalised(t)
            for q in range(len(rows)):
                a = plain_alignment(s[:, q], t[:, q], temperature)
                for i in range(len(t)):
                    mixture = sum(a[i, j] * whole_s[j, q] for j in range(len(s)))
                    total = total + plain_kl(whole_t[i, q], mixture) / len(rows)
        losses.append(total)
    return torch.stack(losses)
