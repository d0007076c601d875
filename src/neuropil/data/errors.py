"""What goes wrong with files and servers, as opposed to wrong arguments."""

__all__ = ["DataError"]


class DataError(RuntimeError):
    """A data set could not be had: server away, wrong or truncated content, nowhere to write.

    The message names the file, the addresses that were tried, and what to do.
    """
