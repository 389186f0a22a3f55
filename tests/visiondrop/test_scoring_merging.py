"""Scores and merges against slow loops over full attention maps."""

from __future__ import annotations

import math

import pytest
import torch

from visiondrop import scoring
from visiondrop.merging import keep_only, merge, reduce_tokens
from visiondrop.scoring import attention_row, column_mean, top_tokens, uniform_column_mean


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_columns(q: torch.Tensor, k: torch.Tensor, scale: float, causal: bool, kind: str) -> list:
    """One query, one head, one key at a time, in plain floats."""
    heads, n, _ = q.shape
    groups, total = heads // k.shape[0], k.shape[1]
    start = total - n
    sums = [0.0] * n
    expected = [0.0] * n
    for h in range(heads):
        for i in range(n):
            last = start + i if causal and kind != "no_mask" else total - 1
            logits = [scale * float(q[h, i] @ k[h // groups, j]) for j in range(last + 1)]
            top = max(logits)
            exps = [math.exp(x - top) for x in logits]
            for j in range(n):
                if start + j <= last:
                    sums[j] += exps[start + j] / sum(exps)
                    expected[j] += 1 / (last + 1)
    if kind == "visible" and causal:
        return [s / heads / (n - j) for j, s in enumerate(sums)]
    mean = [s / heads / n for s in sums]
    if kind == "expectation" and causal:
        return [m / (e / heads / n) for m, e in zip(mean, expected, strict=True)]
    return mean


@pytest.mark.parametrize("kind", ["off", "expectation", "no_mask", "visible"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("chunk", [1, 70, 1 << 24])
def test_column_mean_equals_loops(
    kind: str, causal: bool, kv_heads: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", chunk)
    q, k = rand(2, 4, 7, 5), rand(2, kv_heads, 12, 5, seed=1)
    got = column_mean(q, k, 0.6, causal=causal, correction=kind)
    for g in range(2):
        expected = slow_columns(q[g], k[g], 0.6, causal, kind)
        torch.testing.assert_close(got[g], torch.tensor(expected, dtype=torch.float64))


def test_uniform_attention_shows_the_bias_and_its_corrections() -> None:
    """48 visual tokens after 35 others: the first scores 71 times the last; two corrections
    make it 1.
    """
    q, k = torch.zeros(1, 1, 48, 4), torch.zeros(1, 1, 83, 4)
    ratio = {
        kind: float((s := column_mean(q, k, 1.0, correction=kind))[0, 0] / s[0, -1])
        for kind in ("off", "expectation", "no_mask", "visible")
    }
    assert ratio["off"] == pytest.approx(71, abs=0.5)
    assert ratio["expectation"] == pytest.approx(1, abs=1e-4)
    assert ratio["no_mask"] == pytest.approx(1, abs=1e-5)
    assert ratio["visible"] == pytest.approx(1.5, abs=0.05)
    assert top_tokens(column_mean(q, k, 1.0), 30)[0].tolist() == list(range(30))
    torch.testing.assert_close(column_mean(q, k, 1.0)[0], uniform_column_mean(48, 35))


def test_attention_row_equals_a_row_of_the_map() -> None:
    q, k = rand(3, 4, 9, 5), rand(3, 4, 9, 5, seed=2)
    full = (q @ k.transpose(-1, -2) * 0.3).softmax(-1)
    torch.testing.assert_close(attention_row(q[:, :, 0], k, 0.3), full[:, :, 0].sum(1))


def test_column_mean_needs_its_own_keys() -> None:
    with pytest.raises(ValueError, match="5 visual queries but only 4 keys"):
        column_mean(rand(1, 1, 5, 2), rand(1, 1, 4, 2), 1.0)


def test_top_tokens_breaks_ties_by_place() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0, 1.0]])
    assert top_tokens(scores, 4).tolist() == [[0, 1, 2, 3]]


def slow_reduction(
    x: torch.Tensor, size: list[int], metric: torch.Tensor, dominant: list[int], c: int, rule: str
) -> tuple[list[torch.Tensor], list[int], list[int], list[int]]:
    """Token by token. Returns features, source, target and sizes of the appended order."""
    n = len(size)
    rest = [i for i in range(n) if i not in dominant]
    step = max(1, len(rest) // c)
    references = rest[::step][:c]
    members = [i for i in rest if i not in references]
    went: dict[int, list[int]] = {r: [] for r in references}
    for i in members:
        cosine = [
            float(torch.dot(metric[i], metric[r]) / metric[i].norm() / metric[r].norm())
            for r in references
        ]
        went[references[cosine.index(max(cosine))]].append(i)
    features, source = [x[i] for i in dominant], [*dominant, *references]
    sizes = [size[i] for i in dominant]
    target = [-1] * n
    for slot, i in enumerate(dominant):
        target[i] = slot
    for slot, r in enumerate(references, start=len(dominant)):
        group = went[r]
        for i in [r, *group]:
            target[i] = slot
        sizes.append(sum(size[i] for i in [r, *group]))
        if not group:
            features.append(x[r])
        elif rule == "sum":
            features.append(x[r] + sum(x[i] for i in group) / len(group))
        elif rule == "mean":
            features.append(sum(x[i] for i in [r, *group]) / (1 + len(group)))
        else:
            features.append(sum(x[i] * size[i] for i in [r, *group]) / sizes[-1])
    return features, source, target, sizes


@pytest.mark.parametrize("rule", ["sum", "mean", "size-weighted"])
@pytest.mark.parametrize("placement", ["appended", "in_place"])
@pytest.mark.parametrize("k, c", [(5, 3), (1, 1), (12, 4), (10, 6), (3, 13)])
def test_reduce_tokens_equals_loops(rule: str, placement: str, k: int, c: int) -> None:
    n = 16
    x, metric = rand(2, n, 6), rand(2, n, 4, seed=3)
    sizes = torch.randint(1, 9, (2, n), generator=torch.Generator().manual_seed(4))
    dominant = top_tokens(rand(2, n, seed=5), k)
    got = reduce_tokens(x, sizes, metric, dominant, c, rule=rule, placement=placement)
    for g in range(2):
        features, source, target, out_sizes = slow_reduction(
            x[g], sizes[g].tolist(), metric[g], dominant[g].tolist(), c, rule
        )
        contextual = [False] * k + [True] * c
        if placement == "in_place":
            order = sorted(range(k + c), key=lambda slot: source[slot])
            back = {slot: new for new, slot in enumerate(order)}
            features = [features[s] for s in order]
            source = [source[s] for s in order]
            out_sizes = [out_sizes[s] for s in order]
            contextual = [contextual[s] for s in order]
            target = [back[t] if t >= 0 else -1 for t in target]
        torch.testing.assert_close(got.features[g], torch.stack(features))
        assert got.source[g].tolist() == source
        assert got.target[g].tolist() == target
        assert got.sizes[g].tolist() == out_sizes
        assert got.contextual[g].tolist() == contextual


def test_zero_contextual_drops_the_rest() -> None:
    x, sizes = rand(1, 6, 2), torch.ones(1, 6, dtype=torch.long)
    dominant = torch.tensor([[1, 4]])
    got = reduce_tokens(x, sizes, rand(1, 6, 2), dominant, 0)
    assert torch.equal(got.features, x[:, [1, 4]])
    assert got.target.tolist() == [[-1, 0, -1, -1, 1, -1]]
    assert torch.equal(keep_only(x, sizes, dominant).features, got.features)


def test_more_contextual_than_remain_is_refused() -> None:
    with pytest.raises(ValueError, match="5 contextual tokens asked for where 4 tokens remain"):
        reduce_tokens(
            rand(1, 6, 2),
            torch.ones(1, 6, dtype=torch.long),
            rand(1, 6, 2),
            torch.tensor([[0, 1]]),
            5,
        )


def test_sizes_stay_whole_under_merging() -> None:
    """However often tokens are merged, their sizes add up to what was not dropped."""
    x, sizes = rand(1, 40, 3), torch.ones(1, 40, dtype=torch.long)
    for k, c in ((20, 6), (11, 3), (4, 2)):
        got = reduce_tokens(x, sizes, x, top_tokens(x[..., 0], k), c, rule="size-weighted")
        x, sizes = got.features, got.sizes
        assert int(sizes.sum()) == 40


def test_size_weighted_merging_twice_equals_once() -> None:
    """Merging a merged token by size gives the mean of all patches, a plain mean does not."""
    x = rand(1, 4, 2)
    one = torch.ones(1, 4, dtype=torch.long)
    index = lambda *i: torch.tensor([i])  # noqa: E731
    half, size = merge(x, one, index(0), index(1, 2), index(0, 0), "size-weighted")
    both = torch.cat([half, x[:, 3:]], 1)
    again, total = merge(
        both, torch.cat([size, one[:, 3:]], 1), index(0), index(1), index(0), "size-weighted"
    )
    torch.testing.assert_close(again[0, 0], x[0].mean(0))
    assert int(total) == 4
