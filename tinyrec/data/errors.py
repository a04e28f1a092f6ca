"""The one exception of this package."""


class DataError(ValueError):
    """Data that is missing, too short or asked for by a wrong name; the message is one sentence for the user."""
