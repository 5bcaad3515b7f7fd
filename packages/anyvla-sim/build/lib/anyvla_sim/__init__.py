"""Simulators for the evaluation of anyvla: numpy, msgpack and a simulator; Python 3.8 or later, never torch."""
