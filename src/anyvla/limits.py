"""Upper bounds of numbers in configurations: absurd numbers, which would exhaust the memory or hang, are refused."""

WIDTH = 2**16  # of a layer
LAYERS = 1024  # and heads
STEPS = 1024  # of a window or a chunk, readouts, samples of noise
PIXELS = 4096  # along one side of an image
CALLS = 10_000  # of a network while it samples once
COUNT = 10**9  # optimizer steps, episodes, windows
EPISODES = 10**5  # to play or to record, of one task
BATCH = 2**16
PROCESSES = 4096
SEED = 2**63 - 1
WEIGHT = 1e6  # factors, temperatures
DIMS = 4096  # of an action or a proprio vector
CAMERAS = 64
VALUE = 1e9  # a number in the units of a robot
HZ = 10_000
GB = 1e6
