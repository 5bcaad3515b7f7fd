"""`anyvla eval RUN`: play a benchmark with a checkpoint; success rates with intervals, and videos."""

from __future__ import annotations
