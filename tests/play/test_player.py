from __future__ import annotations

import pytest

from anyvla.play.player import Player
from tests.play import fakes


def make(gain=1.0, at=0.0):
    player = Player(0, fakes.CartRobot(), fakes.Policies(gain))
    player.reset("cart-left", 0)
    player.robot.at = at
    return player


def test_it_executes_as_many_actions_of_a_chunk_as_in_training():
    player = make()
    player.begin("go right", 0, "cart-right")
    told = []
    for _ in range(5):
        player.advance()
        told.append(player.news is not None)
    assert told == [True, False, True, False, True]
    assert player._policies.sessions[0].acted == 3


def test_an_interruption_discards_the_chunk():
    player = make()
    player.begin("go right", 0, "cart-right")
    player.advance()
    player.begin("go left", 0, "cart-left")
    player.advance()
    assert player.robot.at == pytest.approx(0.0)


def test_a_goal_that_held_before_counts_only_if_it_is_the_instructed_one():
    player = make(gain=0.1, at=0.99)
    player.begin("go right", 0, "cart-right")
    player.advance()
    assert player.outcome == "cart-right"
    player.begin("somewhere else", 0, None)
    player.advance()
    assert player.outcome is None
    player.begin("go right", 0, "cart-right")
    player.advance()
    assert player.outcome == "cart-right"


def test_a_goal_that_was_left_counts_again():
    player = make(at=0.9)
    player.begin("go right", 0, None)
    player.advance()
    assert player.outcome == "cart-right"
    player.begin("go left", 0, None)
    player.advance()  # the goal no longer holds
    assert player.outcome is None
    player._chunk[:] = 0.1
    player.advance()
    assert player.outcome == "cart-right"
