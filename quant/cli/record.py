"""Record a calibration by calling a function of the user's, which runs a model in whatever way it likes."""

from __future__ import annotations

import importlib
import math
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from ..calibration.collector import BUDGET, ROWS
from ..calibration.recorder import Recorder
from ..errors import CheckpointError, QuantError
from .console import PROGRAM, Parser, UsageError, say
from .convert import SUFFIX, check_output

GIB = 2**30
FILE_MODULE = "calibrated_rounding_recorded"
"""Module name of the imported file; no other module can have it."""

Function = Callable[[Recorder], object]


def record(argv: Sequence[str]) -> int:
    """``record MODULE_OR_FILE:FUNCTION -o FILE [options]``; gives the exit code."""
    given = _parser().given(argv)
    target = _checked_output(given["output"], given["overwrite"])
    function = load_function(given["function"])
    recorder = Recorder(rows=given["rows"], budget=int(given["budget_gib"] * GIB))
    with _explained(f"{given['function']} failed"):
        function(recorder)
    calibration = recorder.calibration()
    calibration.save(target, overwrite=given["overwrite"])
    if not given["quiet"]:
        say(f"{calibration.summary()}\nWritten: {target}")
    return 0


def load_function(name: str) -> Function:
    """The function that ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` names.

    Raises UsageError for a name of another form, and QuantError for what does not exist, fails or cannot be called.
    """
    source, colon, attribute = name.rpartition(":")
    if not (source and colon and attribute):
        raise UsageError(f"{name} is not MODULE:FUNCTION or FILE.py:FUNCTION.")
    with _explained(f"{source} cannot be imported"):
        module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    if not hasattr(module, attribute):
        raise QuantError(f"There is no '{attribute}' in {source}.")
    function: Function = getattr(module, attribute)
    if not callable(function):
        raise QuantError(f"'{attribute}' in {source} is no function, but {type(function).__name__}.")
    return function


def _parser() -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} record",
        description="Call FUNCTION with a recorder; record layers that run inside 'with recorder.watch(model):'.",
    )
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="or FILE.py:FUNCTION; what runs the model")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=f"calibration to write, *{SUFFIX}")
    rows, budget = f"input rows to keep of each layer (default: {ROWS})", f"GiB of all rows (default: {BUDGET / GIB:g})"
    parser.add_argument("--rows", type=_positive(int), default=ROWS, metavar="N", help=rows)
    parser.add_argument("--budget-gib", type=_positive(float), default=BUDGET / GIB, metavar="X", help=budget)
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return parse


def _checked_output(name: str, overwrite: bool) -> Path:
    """Refuse before the work what could not be written after it."""
    path = Path(name)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"The output {name!r} must end in {SUFFIX}.")
    check_output(path, [], overwrite)
    return path


def _import_file(path: Path) -> ModuleType:
    """A file as a module; as with a script, it may import what lies beside it."""
    if not path.is_file():
        raise QuantError(f"There is no file {path}.")
    spec = spec_from_file_location(FILE_MODULE, path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    sys.path.insert(0, str(path.resolve().parent))
    module = sys.modules[FILE_MODULE] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    # An installed command does not look into the folder that it is called in.
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise QuantError(f"There is no module {name} here or on Python's path.") from None
        raise


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any exception of the user's code into one sentence; the pack's own errors are sentences already."""
    try:
        yield
    except QuantError:
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split())
        raise QuantError(f"{what}: {type(error).__name__}: {message}{_place(error)}.") from error


def _place(error: BaseException) -> str:
    """The innermost line of the user's file that was at work."""
    frames = extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename not in (__file__, importlib.__file__) and not f.filename.startswith("<")]
    last = [f for f in own if f.filename == own[0].filename][-1:]
    return "".join(f" ({Path(f.filename).name}, line {f.lineno})" for f in last)
