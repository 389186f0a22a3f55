"""A page to try methods on: `python -m llava.serve.demo --model-path checkpoints/pocket-llava`.

The full model and the reduced one answer side by side; below is what was kept of the picture. All
visitors share one model: a `visiondrop.Session` gives each their turn, with their own method.
"""

from __future__ import annotations

import argparse

from llava.eval.cli import add_model_flags, model_choice
from llava.eval.errors import EvalError, run_main
from llava.eval.loading import load_model, refuse_clips
from llava.serve.asking import Asker


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava.serve.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_flags(parser)
    group = parser.add_argument_group("answering")
    group.add_argument("--conv-mode", default=None, help="a template; by the model's name if unset")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=64)
    group = parser.add_argument_group("page")
    group.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be seen from elsewhere")
    group.add_argument("--port", type=int, default=None, help="the first free one from 7860 on")
    group.add_argument("--share", action="store_true", help="through a tunnel of gradio's, public")
    args = parser.parse_args(argv)
    try:
        from llava.serve.page import Page, build_page, launch
    except ImportError:
        raise EvalError("the page needs gradio: pip install 'visiondrop[serve]'") from None
    if args.temperature < 0 or args.max_new_tokens < 1:
        raise EvalError(
            f"need temperature >= 0 and max_new_tokens >= 1; got {args.temperature} and "
            f"{args.max_new_tokens}"
        )
    try:
        loaded = load_model(model_choice(args))
        refuse_clips(loaded.model)
        asker = Asker(loaded, args.conv_mode, args.max_new_tokens, args.temperature)
    except (ValueError, TypeError) as error:
        raise EvalError(str(error)) from None
    asker.warm_up()
    title = f"VisionDrop on {asker.loaded.name}"
    launch(build_page(Page(asker), title), args.host, args.port, args.share)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
