"""A page on which a visitor instructs a simulated robot and watches it obey."""
