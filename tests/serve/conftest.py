"""The bundled model, loaded once, and its page on a port of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llava.eval.answering import LoadedModel
from llava.eval.loading import ModelChoice, load_model

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "checkpoints" / "pocket-llava"
PICTURES = ROOT / "playground" / "data" / "eval" / "textvqa" / "train_images"


@pytest.fixture(scope="session")
def pocket() -> LoadedModel:
    """The bundled model in float32, on the CPU."""
    return load_model(ModelChoice(str(POCKET), dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def address(pocket: LoadedModel) -> Iterator[str]:
    """Where the page is served."""
    from llava.serve.asking import Asker
    from llava.serve.page import Page, build_page, launch

    blocks = build_page(Page(Asker(pocket, max_new_tokens=16)))
    _, url, _ = launch(blocks, "127.0.0.1", None, False, prevent_thread_lock=True, quiet=True)
    yield url
    blocks.close()
