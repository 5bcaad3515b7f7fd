"""The exception that ends long work early because a person asked for it, and the exit status that follows."""

STOPPED = 130  # the exit status of a stopped command; shells use it for Ctrl-C


class Interrupted(Exception):
    """Asked to stop. Finished work is kept, and the same command resumes; the message says how far it came."""
