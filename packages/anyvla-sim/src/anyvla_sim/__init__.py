"""The environment side of anyvla's evaluation: numpy, msgpack and a simulator; Python 3.8 and later, never torch."""
