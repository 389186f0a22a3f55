"""A conversation on kept KV is the conversation in one prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.visiondrop import next_models as anyres
from tests.visiondrop.models import IMAGE, PATCHES, generate, logits, pixels, prompt, tiny
from tests.visiondrop.test_image_cache import CLOSE, DROP, KEPT, fresh
from visiondrop import Chat, ImageCache

GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
FIRST = prompt(3, 5, 1)
PICTURE = [IMAGE] * PATCHES


class Ask:
    """Asks a chat and notes the logits of each answer."""

    def __init__(self, chat: Chat):
        self.chat, self.seen = chat, []
        stock = chat.cache.generate

        def noting(*args: Any, **kwargs: Any) -> Any:
            out = stock(*args, output_logits=True, suppress_tokens=[IMAGE], **kwargs)
            self.seen.append(logits(out))
            return out

        chat.cache.generate = noting  # type: ignore[method-assign]

    def __call__(self, ids: list[int], images: Any = None, **kwargs: Any) -> list[int]:
        pictures = None if images is None else {"pixel_values": images}
        return self.chat.ask(ids, pictures, **(GREEDY | kwargs)).tolist()


@pytest.mark.parametrize("method", [DROP, KEPT, None], ids=["renumbered", "original", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_turn_equals_a_fresh_prompt_of_all_ids(method: Any, attention: str) -> None:
    """Text turns, then a second picture, then text again; and what was run is what was new."""
    model, images = tiny(attention=attention), pixels(2)
    chat = Chat(ImageCache(model, method))
    ask, rows, columns = Ask(chat), [], []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kw: columns.append(kw["inputs_embeds"].shape[1]), with_kwargs=True
    )
    turns = [
        (FIRST, images[:1], 1),
        ([21, 22, 23], None, 1),
        ([24], None, 1),
        ([25, *PICTURE, 26, 27], images[1:], 2),
        ([28, 29], None, 2),
    ]
    for ids, shown, _ in turns:
        row = [*chat.ids.tolist(), *ids]
        new = ask(ids, shown)
        rows.append((row, new))
        assert chat.ids.tolist() == row + new
    handle.remove()
    # The picture and four steps; then each answer's last token goes with the next turn.
    assert columns[5:9] == [1 + 3, 1, 1, 1] and columns[9:13] == [1 + 1, 1, 1, 1]
    assert columns[-4:] == [1 + 2, 1, 1, 1]
    for (row, new), seen, (_, _, count) in zip(rows, ask.seen, turns, strict=True):
        out = fresh(model, chat.cache.method, [row], images[:count], **GREEDY)
        assert out.sequences[0, len(row) :].tolist() == new
        torch.testing.assert_close(seen, logits(out), **CLOSE)
    ledger = chat.ledger()
    assert ledger["turns"] == 5 and ledger["ids"] == len(chat.ids) - 1
    last = fresh(model, chat.cache.method, [rows[-1][0]], images, **GREEDY).past_key_values
    assert ledger["held_per_layer"] == [layer.get_seq_length() for layer in last.layers]
    assert chat.sample is not None and ledger["visual_per_layer"] == chat.sample.tokens_per_layer


def test_the_picture_comes_in_a_later_turn() -> None:
    model, chat = tiny(), Chat(ImageCache(tiny(), DROP))
    ask = Ask(chat)
    assert chat.ledger()["kv_bytes"] == 0
    ask([1, 5, 6])
    ask([7, 8])
    assert chat.sample is None and chat.ledger()["mean_visual_tokens"] == 0
    row = [*chat.ids.tolist(), 9, *PICTURE, 10]
    new = ask([9, *PICTURE, 10], pixels(1))
    out = fresh(model, DROP, [row], pixels(1), **GREEDY)
    assert out.sequences[0, len(row) :].tolist() == new
    torch.testing.assert_close(ask.seen[-1], logits(out), **CLOSE)
    plain = generate(model, [[1, 5, 6]], None, **GREEDY)
    torch.testing.assert_close(ask.seen[0], logits(plain), **CLOSE)


def test_beams_answer_and_the_next_turn_is_exact() -> None:
    """Kept rows are of several beams then: the turn is read anew, from the picture on."""
    model, chat = tiny(), Chat(ImageCache(tiny(), DROP))
    ask = Ask(chat)
    new = ask(FIRST, pixels(1), num_beams=3)
    beams = fresh(model, DROP, [FIRST], pixels(1), num_beams=3, **GREEDY)
    assert beams.sequences[0, len(FIRST) :].tolist() == new
    row = [*chat.ids.tolist(), 30, 31]
    ask([30, 31])
    torch.testing.assert_close(
        ask.seen[-1], logits(fresh(model, DROP, [row], pixels(1), **GREEDY)), **CLOSE
    )


def test_pictures_of_any_resolution() -> None:
    model, sizes = anyres.tiny_next(), anyres.SIZES[:2]
    chat = Chat(ImageCache(model, DROP))
    heads = [anyres.prompt(2, 3, i, [size]) for i, size in enumerate(sizes)]
    seen = []
    for i, (head, size) in enumerate(zip(heads, sizes, strict=True)):
        row = [*chat.ids.tolist(), *head]
        new = chat.ask(head, anyres.inputs([size], [i]), suppress_tokens=[IMAGE], **GREEDY)
        seen.append((row, new.tolist()))
    for i, (row, new) in enumerate(seen, start=1):
        with DROP(model):
            out = anyres.generate(model, [row], anyres.inputs(sizes[:i], list(range(i))))
        assert out.sequences[0, len(row) :].tolist() == new


def test_towers_run_once_and_chats_share_the_cache() -> None:
    model, images, seen = tiny(), pixels(2), []
    cache = ImageCache(model, DROP)
    tower = model.model.vision_tower.embeddings
    handle = tower.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    for _ in range(2):
        ask = Ask(Chat(cache))
        ask(FIRST, images[:1])
        ask([25, *PICTURE, 26], images[1:])
        ask.chat.reset()
        assert ask.chat.turns == 0 and len(ask.chat.ids) == 0
        del cache.generate
    handle.remove()
    assert seen == [1, 1], "the second chat finds both prefixes, and one tower pass a picture"
    assert cache.stats.hits == 2 and cache.stats.misses == 2


def test_a_refused_turn_leaves_the_conversation() -> None:
    chat = Chat(ImageCache(tiny(), DROP))
    ask = Ask(chat)
    with pytest.raises(ValueError, match="at least two ids"):
        ask([1])
    ask(FIRST, pixels(1))
    before = chat.ids.tolist(), chat.turns, chat.ledger()
    for ids, images, kwargs, message in (
        ([5, *PICTURE], pixels(1), {}, "ends with its picture"),
        ([5, *PICTURE[:-1], 6], pixels(1), {}, "do not match"),
        ([5], None, {"num_return_sequences": 2}, "a turn has one answer"),
        ([], None, {}, "at least one row"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(ids, images, **kwargs)
        assert (chat.ids.tolist(), chat.turns, chat.ledger()) == before
    assert ask([30, 31])


def test_a_streamer_is_told_every_token() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.values: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.values += value.reshape(-1).tolist()

        def end(self) -> None:
            self.values.append(-1)

    chat, streamer = Chat(ImageCache(tiny(), DROP)), Streamer()
    new = Ask(chat)(FIRST, pixels(1), streamer=streamer)
    assert streamer.values[-5:] == [*new, -1]
