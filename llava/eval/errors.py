"""Errors of the evaluation commands: one line for the user, an exit status, no traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

EXIT_OK = 0
EXIT_USAGE = 2  # bad input, nothing was computed, or it stopped and what there is was kept
EXIT_FAILED_SAMPLES = 3  # the run is complete, but some samples could not be answered


class EvalError(Exception):
    """Something that the user can mend: the text names the value, the limit and the remedy."""


def describe_os_error(error: OSError) -> str:
    """An OSError as a sentence with a remedy."""
    where = f" {error.filename!r}" if error.filename else ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read{where}; choose another folder with OUT or --out"
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk{where}; free some and run the same command again"
    return str(error)


def run_main(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call ``main`` and turn what a user can mend into one line on stderr and status 2."""
    try:
        return main(argv)
    except EvalError as error:
        message = str(error)
    except OSError as error:
        message = describe_os_error(error)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USAGE
