"""The page of `llava.serve.demo`: what its widgets are, and what they do."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

# Before it is imported: it asks for news of itself, and reports its use, otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from llava.serve.asking import Asker
from llava.serve.choices import Choice, choices_of, default_tokens
from llava.serve.examples import bundled_examples
from llava.serve.html import CSS, comparison, message, panel_grid
from llava.serve.pictures import open_picture
from visiondrop.draw import first_panel, stage_panels

__all__ = ["Page", "build_page", "launch"]

TITLE = "VisionDrop: fewer visual tokens"
INTRO = (
    "Ask about a picture. The **full model** reads every visual token of it; the **reduced model** "
    "is the same model, which keeps as many as the slider says, on average over its layers, and "
    "drops or merges the rest. Nothing is trained; methods differ in which tokens they keep."
)
AT_ONCE = 16
"""Requests that may be worked at; their forwards take turns all the same."""
UPLOAD = "100mb"

Shown = tuple[str, str, str, str, str]
"""Message, answer of the full model, of the reduced one, table, drawing."""


class Page:
    """What the page's widgets do, without the widgets."""

    def __init__(self, asker: Asker):
        self.asker = asker
        self.choices = choices_of(asker.geometry)
        self._open = functools.lru_cache(maxsize=8)(self._read)

    @property
    def first(self) -> Choice:
        """The method that is chosen at the beginning."""
        return self.choices.get("visiondrop") or next(iter(self.choices.values()))

    @staticmethod
    def _read(path: str, _changed: float) -> tuple[Any, str]:
        return open_picture(path)

    def open(self, file: str | None) -> tuple[Any, str]:
        """The picture of an uploaded file and a line about it. Raises `ValueError`."""
        if not file:
            raise ValueError("no picture: drop one into the field on the left, or take an example")
        try:
            changed = os.stat(file).st_mtime
        except OSError:
            raise ValueError("the picture is not there any more; choose it again") from None
        return self._open(file, changed)

    def look(self, file: str | None) -> tuple[Any, str]:
        """What to show when a file was chosen: the picture as it was read, and a message."""
        if not file:
            return None, message("Choose a picture, type a question, press Ask.")
        try:
            picture, note = self.open(file)
        except ValueError as error:
            return None, message(str(error), error=True)
        return picture, message(f"{note}. Type a question, press Ask.")

    def choice(self, name: str) -> Choice:
        """A method by name. Raises `ValueError` on one that this model cannot run."""
        if name not in self.choices:
            raise ValueError(f"unknown method {name!r}; possible: {', '.join(self.choices)}")
        return self.choices[name]

    def ask(self, file: str | None, question: str, name: str, tokens: float) -> Iterator[Shown]:
        """Both answers as they grow, then the counts and the drawing."""
        full_text = reduced_text = ""
        try:
            picture, _ = self.open(file)
            choice = self.choice(name)
            method = choice.build(round(tokens), self.asker.geometry)
            prepared = self.asker.prepare(picture, question or "")
            ahead = self.asker.session.waiting + self.asker.session.busy
            if ahead:
                waits = "one question is" if ahead == 1 else f"{ahead} questions are"
                yield message(f"{waits} before yours"), "", "", "", ""
            told = message("The full model answers.")
            with self.asker.stream(None, prepared) as full:
                for piece in full:
                    full_text += piece
                    yield told, full_text, "", "", ""
            full_text = full_text.strip() or "(nothing)"
            told = message("The reduced model answers.")
            with self.asker.stream(method, prepared) as reduced:
                for piece in reduced:
                    reduced_text += piece
                    yield told, full_text, reduced_text, "", ""
            reduced_text = reduced_text.strip() or "(nothing)"
        except (ValueError, TypeError, TimeoutError) as error:
            yield message(str(error), error=True), full_text, reduced_text, "", ""
            return
        assert reduced.trace is not None
        sample, grid = reduced.trace.samples[0], reduced.trace.grid
        panels = [first_panel(sample, prepared.seen, grid)]
        panels += stage_panels(sample, prepared.seen, grid)
        same = "The answers are the same." if full_text == reduced_text else "The answers differ."
        asked = f" at {round(tokens)} tokens" if choice.budgeted else ""
        label = f"{choice.title}{asked}"
        yield (
            message(f"{label}. {same}"),
            full_text,
            reduced_text,
            comparison(full, reduced, label),
            panel_grid(panels, wide=any(sample.grids)),
        )

    def limits(self, name: str, tokens: float) -> tuple[dict[str, Any], str]:
        """The slider's properties for a method, and a line about the method."""
        choice = self.choice(name)
        about = f"{choice.title}: {choice.where}; judges by {choice.signal}."
        if choice.least is None or choice.most is None:
            return {"interactive": False}, f"{about} It takes no number of tokens."
        value = min(max(round(tokens), choice.least), choice.most)
        slider = {"minimum": choice.least, "maximum": choice.most, "value": value}
        return {**slider, "interactive": True}, about


def build_page(page: Page, title: str = TITLE) -> Any:
    """The page as `gradio.Blocks`; endpoints `/ask`, `/look` and `/limits` for other programs."""
    first, geometry = page.first, page.asker.geometry
    tokens = default_tokens(first, geometry)
    slider, about = page.limits(first.name, tokens)
    most = "up to " if geometry.crops else ""
    examples = bundled_examples()
    names = [(choice.title, choice.name) for choice in page.choices.values()]

    def limits(name: str, tokens: float) -> tuple[Any, str]:
        properties, text = page.limits(name, tokens)
        return gr.Slider(**properties), text

    def take(event: gr.SelectData) -> tuple[str, str]:
        example = examples[event.index]
        return str(example.file), example.question

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# {title}\n{INTRO}", elem_id="intro")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                file = gr.File(label="Picture file: drop it here, or click", height=130)
                shown = gr.Image(
                    label="Picture", interactive=False, height=330, buttons=[], elem_id="picture"
                )
                gr.Markdown(
                    "Or take an example, with its question:",
                    visible=bool(examples),
                    elem_id="examples-label",
                )
                gallery = gr.Gallery(
                    [str(example.file) for example in examples],
                    show_label=False,
                    columns=4,
                    rows=1,
                    height=130,
                    allow_preview=False,
                    object_fit="cover",
                    buttons=[],
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gr.Column(scale=3, min_width=320):
                question = gr.Textbox(
                    label="Question",
                    placeholder="What does the sign say?",
                    max_lines=4,
                    elem_id="question",
                )
                method = gr.Dropdown(names, value=first.name, label="Method")
                explained = gr.Markdown(about, elem_id="about")
                budget = gr.Slider(
                    **slider,
                    step=1,
                    label=f"Visual tokens, mean over the {geometry.num_layers} decoder layers "
                    f"(full model: {most}{geometry.num_patches})",
                    elem_id="budget",
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                told = gr.HTML(page.look(None)[1], elem_id="told")
                with gr.Row():
                    full = gr.Textbox(label="Full model", interactive=False, elem_id="full")
                    reduced = gr.Textbox(
                        label="Reduced model", interactive=False, elem_id="reduced"
                    )
                table = gr.HTML(elem_id="table")
        with gr.Row():
            drawing = gr.HTML(elem_id="drawing")

        inputs, outputs = [file, question, method, budget], [told, full, reduced, table, drawing]
        file.change(page.look, file, [shown, told], api_name="look", show_progress="hidden")
        file.change(lambda: ("",) * 4, None, outputs[1:], api_visibility="private", queue=False)
        gallery.select(take, None, [file, question], api_visibility="private")
        method.change(limits, [method, budget], [budget, explained], api_name="limits")
        gr.on(
            [button.click, question.submit],
            page.ask,
            inputs,
            outputs,
            api_name="ask",
            show_progress="hidden",
            concurrency_limit=AT_ONCE,
        )
    return blocks


def theme() -> Any:
    """Gradio's own, with fonts that it serves itself, also for bold."""
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    return gr.themes.Default(font=(font, "ui-sans-serif", "system-ui", "sans-serif"))


def launch(blocks: Any, host: str, port: int | None, share: bool, **options: Any) -> Any:
    """Serve the page; nothing is fetched from elsewhere, nothing reported."""
    examples = {str(example.file.parent) for example in bundled_examples()}
    return blocks.queue(max_size=64).launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=theme(),
        css=CSS,
        max_file_size=UPLOAD,
        allowed_paths=sorted(examples),
        footer_links=["api"],
        ssr_mode=False,
        run_history=False,
        **options,
    )
