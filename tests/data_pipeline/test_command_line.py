import errno
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from cyclopts import Parameter

from data_pipeline.command_line import NamingOptions, WorkerOptions, parse_options, run_command
from data_pipeline.errors import InputError, one_line


def raising(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_is_that_of_the_command(status):
    seen = []
    assert run_command(lambda arguments: seen.append(arguments) or status, ["a", "b"]) == status
    assert seen == [["a", "b"]]


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("file.nii: found this; expected that", "file.nii: found this; expected that"),
        ("2 cases:  \n  a.nii: empty \n\n  b.nii: empty\n", "2 cases:\n  a.nii: empty\n  b.nii: empty"),
    ],
)
def test_an_input_error_is_status_2_and_keeps_its_lines(capsys, message, printed):
    assert run_command(raising(InputError(message)), []) == 2
    assert capsys.readouterr() == ("", f"error: {printed}\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_read_only_disk_is_an_error_of_the_environment(code, capsys):
    assert run_command(raising(OSError(code, "what happened", "out/x.csv")), []) == 2
    assert capsys.readouterr().err.startswith("error: out/x.csv: what happened;")


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])
    with pytest.raises(FileNotFoundError):
        run_command(raising(FileNotFoundError(errno.ENOENT, "gone", "x")), [])


def test_an_interruption_is_status_130(capsys):
    assert run_command(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_traceback():
    program = (
        "import sys; from data_pipeline.command_line import run_command\n"
        "def main(arguments):\n    while True: print('line' * 1000)\n"
        "sys.exit(run_command(main))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_one_line():
    assert one_line("a\n b\t c") == "a b c"


@dataclass(frozen=True, kw_only=True)
class Options(NamingOptions, WorkerOptions):
    """Weigh fruit.

    In one line
    or in two.
    """

    fruit: Annotated[tuple[str, ...], Parameter(required=True, help="what to weigh")] = field(kw_only=False)
    size: Annotated[tuple[float, float] | None, Parameter(help="edges")] = None
    dry_run: Annotated[bool, Parameter(help="do nothing")] = False


def parsed(*arguments):
    return parse_options(Options, arguments, name="weigh", epilogue="example: weigh apple")


def test_arguments_may_stand_anywhere_between_the_options():
    options = parsed("apple", "--size", "1", "2", "pear", "--dry-run", "plum")
    assert options == Options(("apple", "pear", "plum"), size=(1.0, 2.0), dry_run=True)


def test_names_have_hyphens_or_underscores_and_the_later_of_two_counts():
    options = parsed("apple", "--label_map", "1=ET", "--label-map=2=ET", "--dry_run")
    assert (options.label_map, options.dry_run) == ("2=ET", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "parameter FRUIT requires an argument"),
        (["apple", "--sise", "1", "2"], "unknown option: --sise. Did you mean --size?"),
        (["apple", "--size", "1"], "parameter --size requires 2 positional arguments. Only got 1."),
        (["apple", "--size", "1", "big"], 'invalid value for --size: unable to convert "big" into float'),
        (["apple", "--layout", "brats2032"], 'invalid value "brats2032" for --layout. Choose from: "brats2013", '),
        (["apple", "--workers", "-1"], 'invalid value "-1" for --workers. Must be >= 0.'),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError) as refused:
        parsed(*arguments)
    text = str(refused.value)
    assert text.startswith(message) and "\n" not in text
    assert text.endswith(" `weigh --help` lists all options.")


def test_the_help_says_what_the_options_mean(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for part in ("Weigh fruit.", "In one line or in two.", "what to weigh", "--dry-run", "example: weigh apple"):
        assert part in printed


def test_workers_are_one_per_core_unless_given():
    assert parsed("apple", "--workers", "3").processes == 3
    assert parsed("apple").processes >= 1
