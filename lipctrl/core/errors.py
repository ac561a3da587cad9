"""The library's own errors."""


class LipctrlError(Exception):
    """Base of every error that lipctrl raises on purpose."""


class InputError(LipctrlError, ValueError):
    """A user's mistake: the message names the thing, the value got and the value expected."""
