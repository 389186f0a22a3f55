"""LLaVA's name for `llava.eval.eval_seed`: scores, and the leaderboard's file."""

import sys

from llava.eval.errors import run_main
from llava.eval.eval_seed import main

if __name__ == "__main__":
    sys.exit(run_main(main))
