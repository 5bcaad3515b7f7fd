import pytest

pytest.importorskip("websockets")
