"""The one exception that means "you can mend this": the command line prints it as a sentence and exits with code 2."""


class FeridError(Exception):
    """A user's mistake or a broken input. The message names the thing, what is wrong with it and what to do."""
