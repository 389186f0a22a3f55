"""Show which visual tokens a method keeps on one picture, also for original LLaVA checkpoints.

python -m llava.eval.show --model liuhaotian/llava-v1.5-7b --image cat.jpg --tokens 64 -o kept.png
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.errors import EvalError, run_main
from llava.eval.loading import ModelChoice, load_model
from llava.eval.preparing import as_seen, build_prompt
from llava.eval.samples import raw_question
from llava.mm_utils import process_images, tokenizer_image_token
from visiondrop.show import add_arguments, method_from, open_image, show


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llava.eval.show", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    parser.add_argument("--model-base", help="for LoRA adapters and projectors")
    parser.add_argument("--conv-mode", default="vicuna_v1")
    args = parser.parse_args(argv)
    prompt = build_prompt(args.question, args.conv_mode)
    try:
        picture = open_image(args.image)
        loaded = load_model(ModelChoice(args.model, args.model_base))
        method = method_from(args, loaded.model)
    except (ValueError, TypeError) as error:
        raise EvalError(str(error)) from None
    model, tokenizer = loaded.model, loaded.tokenizer
    pixels = torch.stack(list(process_images([picture], loaded.image_processor, model.config)))
    ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")

    def ask() -> str:
        with torch.inference_mode():
            out = model.generate(
                ids[None].to(model.device),
                images=pixels.to(model.device, model.dtype),
                image_sizes=[picture.size],
                do_sample=False,
                max_new_tokens=args.max_new_tokens,
                pad_token_id=loaded.pad_id,
            )
        return tokenizer.decode(out[0], skip_special_tokens=True).strip()

    print(f"method: {json.dumps(method.to_dict())}")
    tiled = pixels.dim() == 5
    seen = picture if tiled else as_seen(pixels[0], loaded.image_processor)
    show(model, method, seen, args.output, ask, raw_question(args.question))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
