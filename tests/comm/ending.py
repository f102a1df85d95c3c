"""The end of a process, faked."""


class Ended(BaseException):
    """A process that ends with this exit code."""
