"""The one way in which long work ends early because a person asked for it."""


class Interrupted(Exception):
    """Asked to stop. What was finished is kept, and run the same command to resume; its text says how far it came."""
