"""The exception that ends long work early because a person asked for it."""


class Interrupted(Exception):
    """Asked to stop. Finished work is kept, and the same command resumes; the message says how far it came."""
