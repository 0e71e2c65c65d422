"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Bad input: a config, a data file, a work directory.

    Its message is one line that names what is wrong and the remedy. Binaries print
    the line and exit with code 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
