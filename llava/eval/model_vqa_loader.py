"""Answer a question file: LLaVA's command, with a method and in batches.

    python -m llava.eval.model_vqa_loader --model-path liuhaotian/llava-v1.5-7b \\
        --question-file llava_textvqa_val_v051_ocr.jsonl --image-folder train_images \\
        --answers-file answers.jsonl --method visiondrop --tokens 64 --batch-size 16

Killed at any moment, the same command goes on where it stopped.  Exit status: 0 all answered, 2 bad
input (nothing is lost), 3 some samples could not be answered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llava.eval.answering import LoadedModel, answer_questions, dataset_of
from llava.eval.answers import AnswerStore
from llava.eval.cli import (
    add_answer_flags,
    add_budget_flag,
    add_model_flags,
    add_released_flags,
    default_workers,
    model_choice,
    parse_limit,
    run_settings,
)
from llava.eval.engines import usable_engine
from llava.eval.errors import EXIT_FAILED_SAMPLES, EXIT_OK, run_main
from llava.eval.loading import load_model, read_config
from llava.eval.pictures import Folder, Pictures
from llava.eval.planning import geometry_of_config, plan_one
from llava.eval.prefixes import may_turn_answers
from llava.eval.preparing import QuestionDataset, build_prompt
from llava.eval.samples import SHOWN, Sample, batches_of, chunk_of_batches, read_questions
from llava.eval.wandb_log import LoggedRun, check_wandb, log_run


def parser(
    description: str = "Answer a question file.",
    questions: str = "jsonl: question_id, image, text",
    folder: bool = True,
) -> argparse.ArgumentParser:
    """LLaVA's flags and ours; ``folder`` where the pictures are in one."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--question-file", required=True, help=questions)
    p.add_argument("--image-folder", required=folder, help="" if folder else "not used")
    p.add_argument("--answers-file", required=True)
    p.add_argument("--num-chunks", type=int, default=1, help="split the questions into so many")
    p.add_argument("--chunk-idx", type=int, default=0, help="and answer this part, from 0")
    p.add_argument("--limit", type=parse_limit, default=None, help="the first N questions")
    p.add_argument("--overwrite", action="store_true", help="throw away another run's answers")
    p.add_argument("--method", help="a name of `python -m visiondrop.methods`, or NAME@PRESET")
    p.add_argument("--tokens", type=int, help="visual tokens, mean over decoder layers")
    add_budget_flag(p)
    p.add_argument("--method-arg", action="append", metavar="NAME=VALUE", help="repeatable")
    p.add_argument("--seed", type=int, default=0, help="of sampling and of seeded methods")
    add_model_flags(p)
    add_answer_flags(p, batch_size=1)
    add_released_flags(p)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    everything = read_questions(args.question_file, args.limit)
    return answer(args, everything, Folder(args.image_folder))


def answer(args: argparse.Namespace, everything: Sequence[Sample], pictures: Pictures) -> int:
    """Answer the chunk of the questions that the flags name; returns the exit status."""
    batches = batches_of(len(everything), args.batch_size)
    chunk = chunk_of_batches(len(batches), args.num_chunks, args.chunk_idx)
    samples = [everything[i] for k in chunk for i in batches[k]]
    pictures.check(samples)
    build_prompt("", args.conv_mode)
    choice = model_choice(args)
    config = read_config(choice)
    run = plan_one(args, geometry_of_config(config))
    settings = run_settings(
        args, choice, config, args.question_file, run.method.to_dict(), args.seed
    )
    asked = args.image_cache == "on"
    shared = may_turn_answers(asked, run.method, samples, settings.dtype)
    engine = usable_engine(args.engine, run.method)
    settings = replace(settings, image_cache=shared, engine=engine)
    if args.wandb:
        check_wandb()
    loaded: LoadedModel | None = None

    def model_and_data() -> tuple[LoadedModel, QuestionDataset]:
        nonlocal loaded
        loaded = loaded or load_model(choice)
        return loaded, dataset_of(loaded, samples, pictures, settings)

    with AnswerStore(args.answers_file, settings, samples, overwrite=args.overwrite) as store:
        if store.todo:
            model, dataset = model_and_data()
            workers = default_workers(settings.device) if args.workers is None else args.workers
            answer_questions(
                model,
                run.method,
                store,
                dataset,
                workers=workers,
                label=run.cell,
                image_cache=asked,
            )
        rows = store.finish()
        if args.wandb:
            note = Path(args.answers_file + ".wandb.json")
            logged = LoggedRun(run.cell, note, settings, settings.to_dict(), {"n": len(rows)}, rows)
            model, dataset = model_and_data()
            print(log_run(logged, model, run.method, dataset))
    failed = [row for row in rows if "error" in row["metadata"]]
    print(f"{len(rows)} answers in {Path(args.answers_file)} ({store.computed} computed now)")
    for row in failed[:SHOWN]:
        print(
            f"failed: question_id {row['question_id']!r}: {row['metadata']['error']}",
            file=sys.stderr,
        )
    if failed:
        print(
            f"{len(failed)} of {len(rows)} samples failed; mend what is wrong and run the same "
            "command again to answer them",
            file=sys.stderr,
        )
    return EXIT_FAILED_SAMPLES if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
