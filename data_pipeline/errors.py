"""The error shown to the person at the keyboard."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line for a person: which file or setting, what was found, what was
    expected, what to do next. Commands print it without a traceback and exit with status 2.
    """
