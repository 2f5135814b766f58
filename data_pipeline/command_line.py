"""What commands share: how their options are parsed, how errors end them, and the options that describe a data set.

The options of a command are a frozen dataclass, each field with its help in a `cyclopts.Parameter`. A field that may be
given by position is an argument; a field marked `kw_only` is an option.
"""

import errno
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError
from cyclopts.validators import Number

from data_pipeline.errors import InputError
from data_pipeline.layouts.table import LAYOUT_HELP, LayoutName
from data_pipeline.workers import available_cores

T = TypeVar("T")

COMMAND_ERROR = 2
"""Exit status when the command cannot do its work."""
CASES_FAILED = 1
"""Exit status when the command ran but some cases failed."""
_INTERRUPTED = 128 + 2  # as the shell reports SIGINT
_BROKEN_PIPE = 128 + 13  # and SIGPIPE

_ARGUMENTS, _OPTIONS = Group("Arguments", sort_key=0), Group("Options", sort_key=10)
_FILES = Group("Files and labels", sort_key=13)

# Refusals of the environment, which the person at the keyboard can mend; other errors are faults of the program.
_ENVIRONMENT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def run_command(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None, *, interrupted: str = "interrupted"
) -> int:
    """Run a command and turn the way it ends into an exit status.

    Args:
      main: takes the command line and returns an exit status.
      arguments: the command line; that of the process if None.
      interrupted: message after Ctrl-C.

    Returns:
      The status that `main` returns; 2 for an `InputError` or a full or read-only disk, after `error: …` on stderr in
      as many lines as the error has; 130 when interrupted; 141 when the reader of stdout has gone away. Other
      exceptions are faults of the program and keep their traceback.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; free space or change permissions, then try again"
    print(f"error: {_tidy_lines(message)}", file=sys.stderr)
    return COMMAND_ERROR


def _tidy_lines(message: str) -> str:
    """The lines of a message that lists several problems, without empty lines and trailing spaces."""
    return "\n".join(line.rstrip() for line in message.splitlines() if line.strip())


def parse_options(options: Callable[..., T], arguments: Sequence[str], *, name: str, epilogue: str = "") -> T:
    """The options of a command, as given on its command line.

    Names are accepted with hyphens and with underscores. If an option is given twice, the later one counts.

    Args:
      options: a dataclass of options, or a function of them; its docstring is what the help says about the command.
      arguments: the command line without the command.
      name: how the command is called, for the help and for messages.
      epilogue: last lines of the help.

    Returns:
      What `options` returns for the values given.

    Raises:
      InputError: an option is unknown, lacks its value, or has one that is not allowed.
      SystemExit: with status 0, after the help was asked for and printed.
    """
    app = App(
        name=name,
        help=_paragraphs(options.__doc__ or ""),
        help_epilogue=epilogue,
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(
            negative="", consume_multiple=True, allow_repeating=True, show_default=_default_in_help
        ),
        group_arguments=_ARGUMENTS,
        group_parameters=_OPTIONS,
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
    )
    app["--help"].group = (_OPTIONS,)
    app["--help"].help = "show this help and exit"
    app.default(_as_command(options))
    try:
        parsed = app(arguments)
    except CycloptsError as error:
        raise InputError(f"{explain(error)} `{name} --help` lists all options.") from error
    if parsed is None:
        raise SystemExit(0)  # the help was printed
    return parsed


def _as_command(options: Callable[..., T]) -> Callable[..., T]:
    """The same, with a signature whose leading parameters are given by position only.

    If the last of them is a tuple, its values may stand anywhere between the options.
    """
    signature = inspect.signature(options)
    parameters = list(signature.parameters.values())
    leading = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    parameters[: len(leading)] = [p.replace(kind=p.POSITIONAL_ONLY) for p in leading]
    single = len(leading)
    if leading and (item := _item_of_tuple(leading[-1].annotation)) is not None:
        single -= 1
        parameters[single] = leading[-1].replace(kind=inspect.Parameter.VAR_POSITIONAL, annotation=item)

    def collect(*given: Any, **named: Any) -> T:
        several = [given[single:]] if single < len(leading) else []
        return options(*given[:single], *several, **named)

    collect.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return collect


def _item_of_tuple(annotation: Any) -> Any:
    """Annotated[X, …] for Annotated[tuple[X, ...], …]; None for anything else."""
    kind, *notes = get_args(annotation) or (annotation,)
    return Annotated[(get_args(kind)[0], *notes)] if get_origin(kind) is tuple else None


def _default_in_help(value: object) -> str | None:
    """A default as it would be typed; a flag that is off and a value that is left out go without saying."""
    if value is None or value == () or isinstance(value, bool):
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _paragraphs(docstring: str) -> str:
    """A docstring with one line per paragraph, which the help wraps to the width of the terminal."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(docstring))


def explain(error: CycloptsError) -> str:
    """The reason why arguments were refused: a sentence for the middle of a line."""
    error.verbose = False
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument {' '.join(error.unused_tokens or ())}."
    text = " ".join(str(error).split())
    return text[:1].lower() + text[1:] + ("" if text.endswith((".", "?")) else ".")


@dataclass(frozen=True, kw_only=True)
class NamingOptions:
    """How files are recognised, and what the values of their labels mean."""

    layout: Annotated[
        LayoutName | None, Parameter(help=LAYOUT_HELP, metavar="NAME", show_choices=False, group=_FILES)
    ] = None
    label_map: Annotated[
        str | None,
        Parameter(
            help='meaning of label values, e.g. "1=NCR,2=ED,4=ET"; by default it follows from names',
            metavar="MAP",
            group=_FILES,
        ),
    ] = None
    ignore_affine: Annotated[bool, Parameter(help="accept files of a case whose affines differ", group=_FILES)] = False


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many processes read cases."""

    workers: Annotated[
        int | None, Parameter(help="processes; by default one per core", metavar="N", validator=Number(gte=0))
    ] = None

    @property
    def processes(self) -> int:
        """The number given, or one per core that this process may use."""
        return available_cores() if self.workers is None else self.workers
