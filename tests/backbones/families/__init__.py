"""The test matrix: a tiny model of every supported family."""

from tests.backbones.families import basic, crossing, llava_like, odd, patches, rope, tiled, timm_towers
from tests.backbones.families.common import Family

FAMILIES: dict[str, Family] = {
    **basic.FAMILIES,
    **rope.FAMILIES,
    **patches.FAMILIES,
    **llava_like.FAMILIES,
    **tiled.FAMILIES,
    **timm_towers.FAMILIES,
    **crossing.FAMILIES,
    **odd.FAMILIES,
}
