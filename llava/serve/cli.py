"""LLaVA's chat in a terminal: `python -m llava.serve.cli --model-path M --image-file photo.jpg`.

Turns go on from kept keys and values (the image cache), with any method of `visiondrop.methods`.
Beside questions it takes commands:

    /image PATH              a picture that goes with the next question, in any turn
    /ledger                  tokens by layer, kept and merged by stage, bytes, the cache's counts
    /draw FILE.png           what was kept, merged and dropped of the pictures so far
    /method NAME [TOKENS]    another method; a new conversation about the same pictures
    /reset                   a new conversation about the same pictures
    /help                    these lines
    /quit                    leave (or the end of the input)

Ctrl-C ends an answer. It reads from a pipe as well as from a terminal.
"""

from __future__ import annotations

import argparse
import io
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

from PIL import Image
from rich.console import Console

from llava.eval.cli import add_budget_flag, add_model_flags, model_choice, parse_method_args
from llava.eval.errors import EvalError, run_main
from llava.eval.loading import load_model, refuse_clips
from llava.serve.pictures import one_line, open_picture
from llava.serve.talk import Talk

__all__ = ["Terminal", "main"]

HELP = (__doc__ or "").split("commands:\n\n")[1].split("\n\nCtrl-C")[0]
MOST_DOWNLOADED = 100_000_000
"""Bytes of a picture from an address."""


def load_picture(place: str) -> tuple[Image.Image, str]:
    """A picture from a file or an http(s) address, and a line about it. Raises `ValueError`."""
    if not place.startswith(("http://", "https://")):
        return open_picture(place)
    try:
        with urllib.request.urlopen(place, timeout=60) as answer:
            data = answer.read(MOST_DOWNLOADED + 1)
    except OSError as error:
        raise ValueError(f"cannot get {place} ({one_line(error)})") from None
    if len(data) > MOST_DOWNLOADED:
        raise ValueError(f"{place} has more than {MOST_DOWNLOADED // 1_000_000} MB; give another")
    return open_picture(io.BytesIO(data), name=place.rpartition("/")[2] or place)


class Terminal:
    """Reads lines, asks, tells.

    Args:
        talk: the conversation.
        budget: what a number of tokens means, see `build_method`.
        read: gives the next line; raises `EOFError` at the end.
    """

    def __init__(self, talk: Talk, budget: Any = "average", read: Callable[[], str] | None = None):
        self.talk, self.budget = talk, budget
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.read = read or self._input
        self.commands: dict[str, Callable[[str], None]] = {
            "image": self.image,
            "ledger": self.ledger,
            "draw": self.draw,
            "method": self.method,
            "reset": self.reset,
            "help": self.help,
        }

    def _input(self) -> str:
        user = self.talk.chat.template.roles[0].strip() or "USER"
        return input(f"{user}: " if sys.stdin.isatty() else "")

    def run(self) -> int:
        """Until the end; the exit status."""
        while True:
            try:
                line = self.read().strip()
            except (EOFError, KeyboardInterrupt):
                self.say("")
                return 0
            if line in ("/quit", "/exit"):
                return 0
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """One line; whatever goes wrong is told in one, too."""
        try:
            if line.startswith("/"):
                name, _, rest = line[1:].partition(" ")
                if name not in self.commands:
                    known = ", ".join(f"/{command}" for command in [*self.commands, "quit"])
                    raise ValueError(f"unknown command /{name}; there are: {known}")
                self.commands[name](rest.strip())
            else:
                self.ask(line)
        except KeyboardInterrupt:
            self.say("(ended)")
        except Exception as error:
            # A chat outlives what one turn meets: a picture that is none, a full GPU.
            self.say(f"error: {one_line(error)}")

    def say(self, text: str) -> None:
        """A line, as it is."""
        print(text, flush=True)

    # ------------------------------------------------------------------ commands

    def ask(self, question: str) -> None:
        """An answer, word by word."""
        begun = False
        name = self.talk.chat.template.roles[1].strip() or "ASSISTANT"
        with self.talk.ask(question) as stream:
            try:
                for piece in stream:
                    if not begun:
                        print(f"{name}: ", end="")
                        piece = piece.lstrip()
                    begun = True
                    print(piece, end="", flush=True)
            finally:
                if begun:
                    print(flush=True)
                stream.close()
                if stream.result is not None:
                    self.talk.took()
        if not begun:
            self.say(f"{name}: ")

    def image(self, rest: str) -> None:
        """/image PATH"""
        if not rest:
            raise ValueError("say which picture: /image PATH")
        picture, note = load_picture(rest)
        self.talk.add_picture(picture)
        self.say(f"{note}; it goes with the next question")

    def ledger(self, rest: str) -> None:
        """/ledger"""
        self.talk.ledger(self.console)

    def draw(self, rest: str) -> None:
        """/draw FILE.png"""
        if not rest:
            raise ValueError("say where to: /draw FILE.png")
        self.say(f"wrote {self.talk.draw(rest)}")

    def method(self, rest: str) -> None:
        """/method NAME [TOKENS] [FIELD=VALUE ...]"""
        words = rest.split()
        if not words:
            self.say(f"{self.talk.method.to_dict()}; another: /method NAME TOKENS")
            return
        numbers = [word for word in words[1:] if "=" not in word]
        if len(numbers) > 1:
            raise ValueError(f"/method {rest}: one number of tokens at most, as in: fastv 128")
        tokens = None
        if numbers:
            try:
                tokens = float(numbers[0])
            except ValueError:
                raise ValueError(
                    f"{numbers[0]!r} is not a number of tokens; write: /method {words[0]} 64"
                ) from None
        fields = parse_method_args([word for word in words[1:] if "=" in word])
        self.talk.set_method(self.talk.method_of(words[0], tokens, fields, self.budget))
        self.say(f"{rest}: a new conversation about the same pictures")
        if self.talk.why_uncached:
            self.say(f"without the image cache: {self.talk.why_uncached}")

    def reset(self, rest: str) -> None:
        """/reset"""
        self.talk.begin()
        self.say("a new conversation about the same pictures")

    def help(self, rest: str) -> None:
        """/help"""
        self.say(HELP)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava.serve.cli", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_model_flags(parser)
    group = parser.add_argument_group("conversation")
    group.add_argument(
        "--image-file", action="append", default=[], help="file or address; repeatable"
    )
    group.add_argument("--conv-mode", default=None, help="a template; by the model's name if unset")
    group.add_argument("--temperature", type=float, default=0.2, help="0 is greedy")
    group.add_argument("--top_p", "--top-p", type=float, default=None)
    group.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=512)
    group = parser.add_argument_group("visual tokens")
    group.add_argument("--method", default=None, help="NAME of visiondrop.methods, NAME@PRESET")
    group.add_argument("--tokens", type=float, default=None, help="visual tokens to keep")
    add_budget_flag(parser)
    group.add_argument("--method-arg", action="append", default=[], metavar="NAME=VALUE")
    group.add_argument("--cache-bytes", type=int, default=2 * 2**30, help="of the image cache")
    args = parser.parse_args(argv)
    if args.temperature < 0 or args.max_new_tokens < 1:
        raise EvalError(
            f"need temperature >= 0 and max_new_tokens >= 1; got {args.temperature} and "
            f"{args.max_new_tokens}"
        )
    if args.method is None and (args.tokens is not None or args.method_arg):
        raise EvalError("--tokens and --method-arg say how a method works; give --method too")
    fields = parse_method_args(args.method_arg)
    sampling: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "do_sample": False}
    if args.temperature > 0:
        sampling.update(do_sample=True, temperature=args.temperature)
        if args.top_p is not None:
            sampling["top_p"] = args.top_p
    try:
        # Bad pictures before the model is loaded.
        pictures = [load_picture(place) for place in args.image_file]
        loaded = load_model(model_choice(args))
        refuse_clips(loaded.model)
        talk = Talk(loaded, None, args.conv_mode, sampling, args.cache_bytes)
        if args.method is not None:
            talk.set_method(talk.method_of(args.method, args.tokens, fields, args.budget))
    except (ValueError, TypeError) as error:
        raise EvalError(str(error)) from None
    terminal = Terminal(talk, args.budget)
    for picture, note in pictures:
        talk.add_picture(picture)
        terminal.say(note)
    if talk.why_uncached:
        terminal.say(f"without the image cache: {talk.why_uncached}")
    if sys.stdin.isatty():
        terminal.say("/help tells the commands")
    return terminal.run()


if __name__ == "__main__":
    sys.exit(run_main(main))
