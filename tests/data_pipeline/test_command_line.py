import errno
import subprocess
import sys

import pytest

from data_pipeline.command_line import run_command
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
