"""Shared fixtures. Tests run on one thread: the models are tiny and workers run side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

if not torch.cuda.is_available():
    # Read when Triton is first imported: its kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cells",
        action="store_true",
        help="run every cell of the identity matrices instead of a pairwise selection",
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference figures of the released codes."""
    return GOLDEN


def load_golden(stem: str) -> dict:
    """One file of reference figures."""
    return json.loads((GOLDEN / f"{stem}.json").read_text(encoding="utf-8"))
