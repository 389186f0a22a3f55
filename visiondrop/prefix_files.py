"""Prefixes as one safetensors file: keys, values and records as tensors, the rest as metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from visiondrop.functional.anyres_layout import TileGrid
from visiondrop.functional.frame_layout import FrameGrid
from visiondrop.functional.packed_layout import PackedGrid
from visiondrop.functional.tile_run import TileRun
from visiondrop.prefix import Prefix
from visiondrop.reducer import Reducer
from visiondrop.trace import SampleTrace, StageTrace

__all__ = ["model_fingerprint", "read_prefixes", "write_prefixes"]

FORMAT = 1
PROBES = 64
"""Elements of each parameter that tell one model from another."""
STAGE_TENSORS = ("identity", "source", "target", "contextual")


def model_fingerprint(model: nn.Module) -> str:
    """A hash of a model: its parameters' names, shapes and types, and evenly spaced elements."""
    whole = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        whole.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode())
        if parameter.device.type != "meta" and parameter.numel():
            flat = parameter.detach().reshape(-1)
            probe = flat[:: max(1, len(flat) // PROBES)][:PROBES].cpu().contiguous()
            whole.update(probe.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def owner_of(model: nn.Module, method: Reducer) -> dict[str, Any]:
    """Whose prefixes they are."""
    from visiondrop import __version__

    return {
        "format": FORMAT,
        "version": __version__,
        "model": model_fingerprint(model),
        "method": method.to_dict(),
    }


def write_prefixes(
    path: str | Path, prefixes: Sequence[Prefix], model: nn.Module, method: Reducer
) -> None:
    """Write prefixes, atomically."""
    tensors: dict[str, torch.Tensor] = {}
    entries = []
    for p, prefix in enumerate(prefixes):
        tensors[f"{p}.ids"] = prefix.ids
        for index, pair in enumerate(prefix.layers):
            for part, tensor in zip(("key", "value"), pair, strict=True):
                tensors[f"{p}.layers.{index}.{part}"] = tensor.contiguous().cpu()
        for name, tensor in prefix.state.items():
            tensors[f"{p}.state.{name}"] = tensor.contiguous().cpu()
        entries.append(
            {
                "key": prefix.key,
                "state": sorted(prefix.state),
                "blocks": prefix.blocks,
                "positions": prefix.positions,
                "layers": len(prefix.layers),
                "sample": _record(prefix.sample, f"{p}.stages", tensors),
            }
        )
    metadata = {"visiondrop": json.dumps({**owner_of(model, method), "prefixes": entries})}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.tmp{os.getpid()}")
    try:
        save_file(tensors, draft, metadata)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _record(
    sample: SampleTrace | None, at: str, tensors: dict[str, torch.Tensor]
) -> dict[str, Any] | None:
    if sample is None:
        return None
    stages = []
    for s, stage in enumerate(sample.stages):
        stages.append({"place": stage.place, "layer": stage.layer, "picture": stage.picture})
        for name in STAGE_TENSORS:
            tensor = getattr(stage, name)
            if tensor is not None:
                tensors[f"{at}.{s}.{name}"] = tensor.contiguous().cpu().clone()
    plain = {f.name: getattr(sample, f.name) for f in fields(sample) if f.name != "stages"}
    grids = [None if g is None else [type(g).__name__, asdict(g)] for g in sample.grids]
    return {**plain, "grids": grids, "stages": stages}


def read_prefixes(
    path: str | Path, model: nn.Module, method: Reducer, device: torch.device
) -> list[Prefix]:
    """The prefixes of a file, on a device.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one of another model, method or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of kept prefixes at {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})["visiondrop"])
            check_owner(path, header, owner_of(model, method))
            names = set(file.keys())
            return [_read(file, names, p, entry) for p, entry in enumerate(header["prefixes"])]
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no file of kept prefixes, or a damaged one ({error}); remove it"
        ) from None


def check_owner(path: Path, header: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise `ValueError` that says what differs."""
    for name in ("format", "version", "method", "model"):
        if header.get(name) != own[name]:
            there, here = (json.dumps(side.get(name))[:200] for side in (header, own))
            raise ValueError(
                f"{path} belongs to another {name}: {there} there, {here} here; its keys and "
                "values would be wrong: build the prefixes anew"
            )


def _read(file: Any, names: set[str], p: int, entry: dict[str, Any]) -> Prefix:
    layers = [
        (file.get_tensor(f"{p}.layers.{i}.key"), file.get_tensor(f"{p}.layers.{i}.value"))
        for i in range(entry["layers"])
    ]
    sample = entry["sample"]
    if sample is not None:
        stages = [
            StageTrace(
                stage["place"],
                stage["layer"],
                stage["picture"],
                **{
                    name: file.get_tensor(tensor)
                    for name in STAGE_TENSORS
                    if (tensor := f"{p}.stages.{s}.{name}") in names
                },
            )
            for s, stage in enumerate(sample.pop("stages"))
        ]
        grids = [None if g is None else _grid(*g) for g in sample.pop("grids")]
        shapes = [None if shape is None else tuple(shape) for shape in sample.pop("shapes")]
        sample = SampleTrace(**sample, stages=stages, grids=grids, shapes=shapes)
    blocks = [(first, length) for first, length in entry["blocks"]]
    ids = file.get_tensor(f"{p}.ids").cpu()
    state = {name: file.get_tensor(f"{p}.state.{name}") for name in entry["state"]}
    return Prefix(entry["key"], ids, layers, blocks, entry["positions"], sample, state=state)


def _grid(name: str, values: dict[str, Any]) -> Any:
    """A grid by the name of its class; JSON has lists where it has tuples."""
    known = (FrameGrid, PackedGrid, TileGrid, TileRun)
    kinds: dict[str, Any] = {kind.__name__: kind for kind in known}
    return kinds[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
