"""The one exception that the command line turns into a single line for a person."""


class HybridsepError(ValueError):
    """Bad input or a broken file: the message says what, with the value, and what to do."""
