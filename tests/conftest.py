"""Settings of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; set before torch is imported

from hypothesis import settings

settings.register_profile("anyvla", deadline=None)  # a first import may take seconds
settings.load_profile("anyvla")
