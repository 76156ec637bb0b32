"""The one exception a user of the library is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what was expected, what came, what to do. The command line
    prints it without a traceback and exits with code 2.
    """
