"""LLaVA's name for `llava.eval.convert_mmbench_for_submission`."""

import sys

from llava.eval.convert_mmbench_for_submission import main
from llava.eval.errors import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
