"""Models whose attention heads are spread over processes (tensor parallelism).

Each process computes the queries and keys of its own heads only, while every method that reads
attention means all of them: sums and means over heads, head-mean keys, rules per head. With its own
heads alone a process would choose other tokens than its neighbours, and the layers after that would
add up rows that belong to different tokens. Two things keep the processes together:

- `all_heads` puts the projections of all processes side by side, in the model's order of heads,
  before a method sees them. Gathering, and not summing scores up, keeps methods free of the matter
  (what they do with the heads is their own), and each number they see is what one process would
  have, up to the rounding of hidden states. It costs a stage about what one layer costs anyway: a
  layer sums [rows, width] up twice, a stage gathers the query rows and the key rows once.
- `FirstDecides` hands every process the first one's reduction, so that not even a near tie on
  unequal hardware can part them.

Sharded models are known by their layers: `mp_group` of DeepSpeed's linear layers (AutoTP), or
weights that are DTensors (transformers' `tp_plan`). With whole heads nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from visiondrop.merging import Reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from visiondrop.reducer import Reducer, Reductions

__all__ = ["FirstDecides", "all_heads", "check_heads", "group_of", "group_of_decoder"]


def group_of(linear: Any) -> ProcessGroup | None:
    """The processes over which a linear layer's weight is spread; None where it is whole."""
    group = getattr(linear, "mp_group", None)
    if group is None:
        mesh = getattr(getattr(linear, "weight", None), "device_mesh", None)
        # FSDP spreads weights too, over processes that answer different prompts.
        if mesh is None or "tp" not in (mesh.mesh_dim_names or ()):
            return None
        group = mesh.get_group("tp")
    return group if distributed.get_world_size(group) > 1 else None


def all_heads(linear: Any, projected: Tensor, heads: int, head_dim: int) -> Tensor:
    """The output of a query or key projection as heads, those of all processes.

    Args:
        linear: the projection.
        projected: [G, T, H' d], its output here.
        heads: H, of the whole model.
        head_dim: d.

    Returns: [G, H, T, d].
    Raises `ValueError` where heads are missing and nothing says which processes hold them, or each
    holds another number.
    """
    here = projected.shape[-1] // head_dim
    if here != heads:
        group = group_of(linear)
        count = 1 if group is None else distributed.get_world_size(group)
        if here * count != heads:
            raise ValueError(uneven(heads, count))
        parts = [torch.empty_like(projected, requires_grad=False) for _ in range(count)]
        distributed.all_gather(parts, projected.detach().contiguous(), group)
        projected = torch.cat(parts, -1)
    return projected.view(*projected.shape[:2], heads, head_dim).transpose(1, 2)


def uneven(heads: int, count: int) -> str:
    """What is wrong with so many heads on so many processes."""
    if count == 1:
        return (
            f"a projection gives fewer than the model's {heads} heads, and its layer does not say "
            "which processes hold the others: shard the model with DeepSpeed's AutoTP or "
            "transformers' tp_plan"
        )
    fits = [str(n) for n in range(1, heads + 1) if heads % n == 0]
    return (
        f"{heads} attention heads (query or key-value) do not divide evenly over {count} "
        f"processes; choose a tensor-parallel size of {', '.join(fits)}"
    )


def check_heads(config: Any, count: int) -> None:
    """Raise `ValueError` where the attention heads of a decoder's configuration do not divide
    evenly over so many processes.
    """
    for heads in (config.num_attention_heads, config.num_key_value_heads):
        if heads % count:
            raise ValueError(uneven(heads, count))


def group_of_decoder(decoder: Any) -> ProcessGroup | None:
    """The processes over which a decoder's attention is spread; None where it is whole.

    Raises `ValueError` where its heads do not divide over them.
    """
    group = group_of(getattr(decoder.layers[0].self_attn, "q_proj", None))
    if group is not None:
        check_heads(decoder.config, distributed.get_world_size(group))
    return group


class FirstDecides:
    """A method all of whose stages end with the reduction of the group's first process.

    Everything else is the method's own.
    """

    def __init__(self, method: Reducer, group: ProcessGroup) -> None:
        self._method, self._group = method, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    @property
    def before_part(self) -> FirstDecides:
        """See `Reducer.before_part`."""
        return FirstDecides(self._method.before_part, self._group)

    @property
    def inside_part(self) -> FirstDecides:
        """See `Reducer.inside_part`."""
        return FirstDecides(self._method.inside_part, self._group)

    def with_entry(self, tokens: int) -> FirstDecides:
        """See `Reducer.with_entry`."""
        return FirstDecides(self._method.with_entry(tokens), self._group)

    def counted(self, count: Callable[[int], int]) -> FirstDecides:
        """See `Reducer.counted`."""
        return FirstDecides(self._method.counted(count), self._group)

    def scaled(self, share: float) -> FirstDecides:
        """See `Reducer.scaled`."""
        return FirstDecides(self._method.scaled(share), self._group)

    def encoder_stage(self, view: Any) -> Reductions:
        """See `Reducer.encoder_stage`."""
        own = self._method.encoder_stage(view)
        return first_of_all(own, view.features.shape[0], view.features, self._group)

    def projected_stage(self, view: Any) -> Reductions:
        """See `Reducer.projected_stage`."""
        own = self._method.projected_stage(view)
        return first_of_all(own, view.features.shape[0], view.features, self._group)

    def tower_block(self, view: Any) -> Reductions:
        """See `Reducer.tower_block`."""
        own = self._method.tower_block(view)
        return first_of_all(own, view.hidden.shape[0], view.hidden, self._group)

    def prompt_stage(self, view: Any) -> Reductions:
        """See `Reducer.prompt_stage`."""
        own = self._method.prompt_stage(view)
        return first_of_all(own, len(view.pictures), view.pictures[0], self._group)

    def llm_stage(self, view: Any) -> Reductions:
        """See `Reducer.llm_stage`."""
        own = self._method.llm_stage(view)
        return first_of_all(own, view.hidden.shape[0], view.hidden, self._group)


def first_of_all(own: Reductions, count: int, like: Tensor, group: ProcessGroup) -> Reductions:
    """The reductions of the group's first process, on every process, in four small broadcasts.

    Args:
        own: this process's reductions of `count` pictures.
        like: [..., D], of the features' device, dtype and width.
    """
    first, device, width = distributed.get_rank(group) == 0, like.device, like.shape[-1]
    listed: list[Reduction | None] = own if isinstance(own, list) else [own]
    given = [item for item in listed if item is not None] if first else []
    # Row 0: nothing, one reduction of all, or a list. Then pictures, tokens after and before, score
    # (0 or 1) of each reduction.
    plan = torch.zeros(1 + count, 4, dtype=torch.long)
    plan[0] = 0 if own is None else 1 + isinstance(own, list)
    for row, item in zip(plan[1:], listed, strict=isinstance(own, list)):
        if item is not None:
            after, before = item.source.shape, item.target.shape[1]
            row[:] = torch.tensor([*after, before, int(item.score is not None)])
    plan = plan.to(device)
    distributed.broadcast(plan, group=group, group_src=0)
    (kind, *_), *shapes = plan.tolist()
    if kind == 0:
        return None

    points = [g * m for g, m, _, _ in shapes]
    whole = [g * (3 * m + n) for g, m, n, _ in shapes]
    scored = [g * m * s for g, m, _, s in shapes]
    numbers = torch.empty(sum(whole), dtype=torch.long, device=device)
    features = torch.empty(sum(points) * width, dtype=like.dtype, device=device)
    scores = torch.empty(sum(scored), dtype=torch.float64, device=device)
    if first:
        fill(numbers, [t for i in given for t in (i.source, i.sizes, i.contextual, i.target)])
        fill(features, [i.features for i in given])
        fill(scores, [i.score for i in given if i.score is not None])
    for tensor in (numbers, features, scores):
        if tensor.numel():
            distributed.broadcast(tensor, group=group, group_src=0)

    out: list[Reduction | None] = []
    precise = torch.promote_types(like.dtype, torch.float32)
    states, values = features.view(-1, width).split(points), scores.split(scored)
    parts = zip(shapes, numbers.split(whole), states, values, strict=True)
    for (g, m, n, has_score), ints, state, score in parts:
        source, sizes, contextual = ints[: 3 * g * m].view(3, g, m)
        reduction = Reduction(
            state.view(g, m, width),
            source,
            ints[3 * g * m :].view(g, n),
            sizes,
            contextual.bool(),
            score.view(g, m).to(precise) if has_score else None,
        )
        out.append(reduction if g else None)
    return out[0] if kind == 1 else out


def fill(flat: Tensor, parts: list[Tensor]) -> None:
    """Write tensors of any shape one behind the other into `flat`."""
    if parts:
        flat.copy_(torch.cat([part.reshape(-1).to(flat) for part in parts]))
