"""The test matrix: every family that is said to work, as a tiny model."""

from families import basic, crossing, patches, rope
from families.common import Family

FAMILIES: dict[str, Family] = {**basic.FAMILIES, **rope.FAMILIES, **patches.FAMILIES, **crossing.FAMILIES}
