"""Answer an MMBench tsv: LLaVA's command, with a method and in batches.

    python -m llava.eval.model_vqa_mmbench --model-path liuhaotian/llava-v1.5-7b \\
        --question-file mmbench_dev_20230712.tsv --answers-file answers.jsonl \\
        --single-pred-prompt --method visiondrop --tokens 64 --batch-size 16

``--all-rounds`` asks every row once a rotation of its options.  The answers file has LLaVA's
fields, the prompt with its instruction; a question's circular rows follow it.
"""

from __future__ import annotations

import sys

from llava.eval.errors import EvalError, run_main
from llava.eval.mmbench_tsv import CHINESE, ENGLISH, read_table
from llava.eval.model_vqa_loader import answer, parser

INSTRUCTIONS = {"en": ENGLISH, "cn": CHINESE}


def main(argv: list[str] | None = None) -> int:
    p = parser("Answer an MMBench tsv.", "tsv: questions, options, pictures", folder=False)
    p.add_argument("--lang", default="en", help="of the instruction: en or cn")
    p.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    p.add_argument("--all-rounds", action="store_true", help="rotate the options of every row")
    p.set_defaults(max_new_tokens=1024)
    args = p.parse_args(argv)
    if args.lang not in INSTRUCTIONS:
        raise EvalError(f"unknown language {args.lang!r}; --lang is en or cn")
    if args.limit is not None and args.limit < 1:
        raise EvalError(f"limit must be at least 1, got {args.limit}; leave it out for all")
    table = read_table(args.question_file)
    instruction = INSTRUCTIONS[args.lang] if args.single_pred_prompt else ""
    samples = table.samples(instruction, args.all_rounds)[: args.limit]
    return answer(args, samples, table.pictures)


if __name__ == "__main__":
    sys.exit(run_main(main))
