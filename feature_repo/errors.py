"""What courier refuses: the one kind of error whose message is for whoever runs it. Standard library only."""


class CourierError(Exception):
    """Something cannot be done as asked. The message is one sentence: the file, the row or the name, and the cure.

    The front door prints it without a traceback; any other exception is a bug and keeps its own.
    """
