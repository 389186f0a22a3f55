"""Weight files of LLaVA's original checkpoints, read lazily and renamed to transformers' names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from llava.model.layout import read_json

State = dict[str, Tensor]

# Leftovers of older versions, and CLIP's text half: skipped by name, everything else must fit.
_SKIPPED = re.compile(
    r"(rotary_emb\.inv_freq|position_ids)$"
    r"|^(text_model\.|text_projection|visual_projection|logit_scale)"
)

_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.vision_tower\.(vision_tower\.)?(vision_model\.)?", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)


def is_skipped(key: str) -> bool:
    """Whether a key is a known leftover, with or without the tower's prefix."""
    return bool(_SKIPPED.search(key))


def original_key(key: str) -> str:
    """A key as peft and LLaVA's trainer write it (`base_model.model.model.x`), as `model.x`."""
    key = key.removeprefix("base_model.")
    return key.removeprefix("model.") if key.startswith("model.model.") else key


def to_stock_key(key: str) -> str:
    """The name in `LlavaForConditionalGeneration` of a key of an original checkpoint."""
    for pattern, target in _RENAMES:
        key = re.sub(pattern, target, key)
    return key


def to_stock_state(state: State) -> State:
    """The same tensors under transformers' names, known leftovers left out."""
    return {to_stock_key(key): value for key, value in state.items() if not is_skipped(key)}


def tower_state(state: State) -> State:
    """A CLIPModel's or CLIPVisionModel's tensors as the model's vision tower."""
    kept = {key: value for key, value in state.items() if not is_skipped(key)}
    return {
        "model.vision_tower." + key.removeprefix("vision_model."): value
        for key, value in kept.items()
    }


def weight_files(folder: Path, stem: str = "") -> list[Path]:
    """The weight files of a folder; safetensors where both kinds are there.

    stem: the file's name without ending, where it is neither `model` nor `pytorch_model`.
    Raises FileNotFoundError naming the shards that an index lists and the folder lacks.
    """
    for name in (stem,) if stem else ("model", "pytorch_model"):
        for ending in ("safetensors", "bin"):
            index = folder / f"{name}.{ending}.index.json"
            if index.is_file():
                names = sorted(set(read_json(index).get("weight_map", {}).values()))
                missing = [shard for shard in names if not (folder / shard).is_file()]
                if missing or not names:
                    raise FileNotFoundError(
                        f"{folder} lacks {len(missing)} of {len(names)} weight files that "
                        f"{index.name} lists: {', '.join(missing) or 'it lists none'}; fetch them "
                        "again"
                    )
                return [folder / shard for shard in names]
            if (folder / f"{name}.{ending}").is_file():
                return [folder / f"{name}.{ending}"]
    wanted = stem or "model.safetensors, pytorch_model"
    raise FileNotFoundError(
        f"{folder} holds no weights: expected {wanted}.bin or .safetensors, or an index of shards"
    )


def weight_names(files: Iterable[Path]) -> set[str]:
    """The keys of some weight files; no tensor is read."""
    names: set[str] = set()
    for file in files:
        names |= set(read_weights([file]))
    return names


def read_weights(files: Iterable[Path]) -> State:
    """All tensors of some weight files, left on disk (memory-mapped) until they are used."""
    state: State = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    names = list(opened.keys())
                    shard = {key: opened.get_tensor(key) for key in names}
            else:
                shard = _read_bin(file)
        except Exception as error:
            raise ValueError(
                f"{file} cannot be read ({type(error).__name__}: {error}); fetch it again"
            ) from error
        state.update(shard)
    return state


def _read_bin(file: Path) -> State:
    try:
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        data = torch.load(file, map_location="cpu", weights_only=True)
    wrong = [key for key, value in data.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{wrong[0]} is no tensor")
    return dict(data)


def check_state(state: State, expected: dict[str, torch.Size], where: str) -> None:
    """Raises ValueError naming every missing and unexpected key and every unequal shape."""
    problems = []
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    for title, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
            problems.append(f"{title}: {', '.join(keys[:8])}{more}")
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the configuration says {tuple(size)}"
        for key, size in sorted(expected.items())
        if key in state and state[key].shape != size
    ][:8]
    if problems:
        raise ValueError(
            f"the weights of {where} do not fit its configuration; {'; '.join(problems)}"
        )
