"""The lines that GPT-assisted scoring reads: `llava.eval.convert_video_for_gpt`."""

import sys

from llava.eval.convert_video_for_gpt import main
from llava.eval.errors import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
