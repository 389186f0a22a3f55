"""LLaVA's name for `llava.eval.convert_mmvet_for_eval`."""

import sys

from llava.eval.convert_mmvet_for_eval import main
from llava.eval.errors import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
