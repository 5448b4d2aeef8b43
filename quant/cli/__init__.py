"""The command line: ``python -m quant`` in the checkout, ``calibrated-rounding`` where the pack is installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from ..device import is_out_of_memory
from ..errors import QuantError, RankError
from ..workers.ranks import end_process
from .commands import compare, formats, inspect, profiles
from .console import UsageError, abandon_output, fail, tolerate_any_text
from .convert import convert
from .record import record
from .signals import Interrupted

COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "formats": formats,
    "inspect": inspect,
    "compare": compare,
    "profiles": profiles,
    "record": record,
}

FINE, USER_ERROR, USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0 fine, 1 an error of the user's, 2 bad usage, 128 + n a signal."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    tolerate_any_text()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        end_process(code)
        return code
    except BrokenPipeError:
        abandon_output()
        return PIPE_CLOSED


def _dispatch(arguments: Sequence[str]) -> int:
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
        return convert(arguments)
    except UsageError as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks have the same command line
            fail(error)
        return USAGE
    except Interrupted as error:
        fail(error)
        return 128 + error.number
    except RankError as error:
        if not error.reported:
            fail(error)
        return USER_ERROR
    except QuantError as error:
        fail(error)
        return USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail("The memory is exhausted; close other programs.")
        return USER_ERROR
    except KeyboardInterrupt:
        fail("Interrupted.")
        return INTERRUPTED
    except SystemExit as finished:  # argparse, after --help and --version
        return int(finished.code or FINE)
