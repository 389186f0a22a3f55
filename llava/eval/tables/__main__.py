import sys

from llava.eval.errors import run_main
from llava.eval.tables.command import main

if __name__ == "__main__":
    sys.exit(run_main(main))
