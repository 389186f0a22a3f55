"""Answer ScienceQA's question list: LLaVA's command, with a method and in batches.

    python -m llava.eval.model_vqa_science --model-path liuhaotian/llava-v1.5-7b \\
        --question-file llava_test_CQM-A.json --image-folder images/test \\
        --answers-file answers.jsonl --single-pred-prompt --method visiondrop --tokens 64

Questions without a picture are asked without one.
"""

from __future__ import annotations

import sys

from llava.eval.errors import EvalError, run_main
from llava.eval.eval_science_qa import INSTRUCTION, read_question_list
from llava.eval.model_vqa_loader import answer, parser
from llava.eval.pictures import Folder


def main(argv: list[str] | None = None) -> int:
    p = parser("Answer ScienceQA's question list.", "json list: id, conversations, image")
    p.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    p.set_defaults(max_new_tokens=1024)
    args = p.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise EvalError(f"limit must be at least 1, got {args.limit}; leave it out for all")
    instruction = INSTRUCTION if args.single_pred_prompt else ""
    samples = read_question_list(args.question_file, instruction)[: args.limit]
    return answer(args, samples, Folder(args.image_folder))


if __name__ == "__main__":
    sys.exit(run_main(main))
