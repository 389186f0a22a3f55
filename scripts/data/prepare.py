"""Command line of `llava.data.prepare`."""

import sys

from llava.data.prepare import main
from llava.eval.errors import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
