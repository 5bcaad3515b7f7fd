"""The one way in which long work ends early because a person asked for it."""


class Interrupted(Exception):
    """Asked to stop. What was finished is kept, and the same command goes on there; its text says how far it came."""
