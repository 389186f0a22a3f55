"""One model spread over the processes of a launch (tensor parallelism) answers a benchmark.

    deepspeed --num_gpus 4 --module llava.eval.run_benchmark textvqa --tensor-parallel 4 ...

Other than the processes of `llava.eval.processes`, which hold a model each and share the questions
out, these answer every batch together. Process 0 alone keeps answers, scores and prints; what the
others write goes to a folder that is thrown away.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from llava.eval.errors import EvalError
from llava.model.tensor_parallel import ENGINES, same_everywhere, start_group


@dataclass(frozen=True)
class Shards:
    """This process among those that hold one model; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def follows(self) -> bool:
        """Whether another process keeps the answers."""
        return self.rank > 0

    def same(self, batches: list[int]) -> list[int]:
        """The batches that are open in process 0, in all processes."""
        return batches if self.size == 1 else same_everywhere(batches)


def add_shard_flags(parser: argparse.ArgumentParser, processes: int, engine: str) -> None:
    """Flags of a model larger than one GPU, with their defaults."""
    group = parser.add_argument_group("a model larger than one GPU (docs/scaling.md)")
    group.add_argument(
        "--tensor-parallel",
        type=int,
        default=processes,
        metavar="N",
        help="the N processes of this launch hold one model between them",
    )
    group.add_argument(
        "--sharded-by",
        default=engine,
        choices=ENGINES,
        help="deepspeed (AutoTP) or transformers (tp_plan, reads a share of the weights each)",
    )
    group.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher


@contextlib.contextmanager
def shards(args: argparse.Namespace) -> Iterator[Shards]:
    """The processes of this launch as one model's, for a command with ``--tensor-parallel``.

    Changes ``args`` so that nothing else is shared out and followers keep nothing. Raises EvalError
    where another number of processes was started, or the flags do not go together."""
    count, started = args.tensor_parallel, int(os.environ.get("WORLD_SIZE", "1"))
    if count != started:
        raise EvalError(
            f"--tensor-parallel {count} in a launch of {started} process(es): start it with "
            f"`torchrun --nproc_per_node {count} -m` or `deepspeed --num_gpus {count} --module`"
        )
    if args.nproc not in (None, 1):
        raise EvalError(
            f"--nproc {args.nproc} with --tensor-parallel {count}: all processes hold one model "
            "between them and answer every batch together; leave NPROC out"
        )
    if args.load_8bit or args.load_4bit:
        raise EvalError("--load-8bit and --load-4bit do not go with --tensor-parallel")
    args.nproc = 1
    start_group(args.device)
    me = Shards(int(os.environ["RANK"]), count)
    if not me.follows:
        yield me
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        args.out, args.wandb = folder, False
        yield me
