import logging
import math

import pytest
import torch

from anyvla.config import ConfigError, build
from anyvla.decoders.base import DecoderInput, token_loss
from anyvla.decoders.tokens import TokensDecoder
from anyvla.files import weights
from tests.decoders.token_parts import (
    ALL,
    SPACE,
    C,
    Levels,
    N,
    actions,
    backbone,
    overfit,
    recorded,
    setting,
    short_and_long,
    vectors,
)

MODEL = backbone()


def decoder(codec=None, **keys):
    torch.manual_seed(0)
    config = build(TokensDecoder.Config, {"width": 32, "layers": 2, "heads": 2} | keys)
    return TokensDecoder(config, setting(MODEL, codec or Levels()))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("ends", [False, True])
def test_reading_the_written_tokens_at_once_scores_them_as_writing_did(ends):
    head = decoder(Levels(ends=ends))
    tokens, logits = recorded(head, DecoderInput(vectors()))
    with torch.no_grad():
        torch.testing.assert_close(head.logits(DecoderInput(vectors()), tokens)[:, : logits.shape[1]], logits)


def test_a_place_sees_only_what_was_written_before_it():
    head = decoder()
    tokens = torch.zeros(1, head.length, dtype=torch.int64)
    other = tokens.clone()
    other[:, 3:] = 5
    one, two = (head.logits(DecoderInput(vectors(1)), t) for t in (tokens, other))
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert (one[:, 4] - two[:, 4]).abs().max() > 1e-4


@pytest.mark.parametrize("ends", [False, True])
def test_one_batch_is_learned_until_its_own_chunks_are_written(ends):
    codec, chunks = Levels(ends=ends), short_and_long()
    head = decoder(codec)
    loss = overfit(head, (), lambda: DecoderInput(vectors()), chunks)
    assert loss.parts["accuracy"] == 1
    torch.testing.assert_close(head.sample(DecoderInput(vectors())), codec.decode(codec.encode(chunks))[0])
    assert head.invalid == 0


def test_the_loss_is_the_cross_entropy_of_the_tokens_of_valid_actions():
    head, chunks, mask = decoder(), actions(), ALL.clone()
    mask[2, 1:], mask[3] = False, False
    loss = head.loss(DecoderInput(vectors()), chunks, mask)
    tokens = head.codec.encode(chunks)
    each = torch.nn.functional.cross_entropy(
        head.logits(DecoderInput(vectors()), tokens).transpose(1, 2), tokens, reduction="none"
    )
    valid = mask[..., None].expand(-1, -1, SPACE.size).flatten(1)
    torch.testing.assert_close(loss.value, each[valid].mean())
    assert loss.count == valid.sum()
    chunks[~mask] = 0.7
    torch.testing.assert_close(head.loss(DecoderInput(vectors()), chunks, mask).value, loss.value)
    nothing = head.loss(DecoderInput(vectors()), chunks, torch.zeros_like(mask))
    assert nothing.value == 0
    nothing.value.backward()


def test_tokens_of_dims_that_are_not_learned_are_written_and_not_learned():
    codec = Levels()
    codec.elementwise = True
    head, dims = decoder(codec), torch.tensor([[True, False, True, True]] * 3 + [[True] * 4])
    inputs, chunks = DecoderInput(vectors(), learned_dims=dims), actions() * dims[:, None]
    tokens = codec.encode(chunks)
    each = torch.nn.functional.cross_entropy(head.logits(inputs, tokens).transpose(1, 2), tokens, reduction="none")
    free = dims[:, None].expand(-1, N, -1).flatten(1)  # action by action
    loss = head.loss(inputs, chunks, ALL)
    torch.testing.assert_close(loss.value, each[free].mean())
    assert loss.count == free.sum() == N * 13
    written = head.sample(inputs)
    torch.testing.assert_close(written[:3, :, 1], torch.full((3, N), -0.2))  # of six levels the first beside zero


def test_the_end_token_follows_the_last_token_if_there_is_room():
    head, chunks = decoder(Levels(ends=True)), torch.full((3, N, SPACE.size), -1.0)
    chunks[1] = torch.linspace(-1, 1, head.length).view(N, -1)
    chunks[1, 1, 3] = -1.0  # the last element differs from the one before: all are written
    mask = torch.ones(3, N, dtype=torch.bool)
    mask[2] = False
    targets = head.targets(chunks, mask)
    assert targets[0].tolist() == [0, 6, -1, -1, -1, -1, -1, -1]
    assert 6 not in targets[1]
    assert -1 not in targets[1]
    assert (targets[2] == -1).all()


def test_writing_stops_when_all_have_ended_and_what_follows_an_end_does_not_count():
    codec, chunks = Levels(ends=True), actions()
    chunks[:] = chunks[:, :1, :1]  # one token each, and the end
    head = decoder(codec)
    overfit(head, (), lambda: DecoderInput(vectors()), chunks)
    tokens, logits = recorded(head, DecoderInput(vectors()))
    assert logits.shape[1] == 2
    assert (tokens[:, 1] == codec.size).all()
    tokens[:, 2:] = 3
    torch.testing.assert_close(codec.decode(tokens)[0], head.sample(DecoderInput(vectors())))


def test_the_end_is_never_the_first_token():
    head = decoder(Levels(ends=True))
    with torch.no_grad():
        head.out.bias[6] = 100.0
    tokens, logits = recorded(head, DecoderInput(vectors()))
    assert (logits.argmax(-1)[:, 0] == 6).all()
    assert (tokens[:, 0] < 6).all()
    head.sample(DecoderInput(vectors()))
    assert head.invalid == 0


def test_a_chunk_does_not_depend_on_its_neighbors():
    for keys in ({}, {"temperature": 1.0}):
        head = decoder(Levels(ends=True), **keys)
        together = head.sample(DecoderInput(vectors()), generators(0, 1, 2, 3))
        alone = head.sample(DecoderInput(vectors()[2:3]), generators(2))
        torch.testing.assert_close(together[2:3], alone)


def test_a_generator_decides_its_chunk_and_gives_each_step_as_many_numbers():
    head = decoder(Levels(ends=True), temperature=2.0)
    inputs = DecoderInput(vectors(1).expand(3, -1))
    mine, same, other = generators(0, 0, 1)
    chunks = head.sample(inputs, [mine, same, other])
    torch.testing.assert_close(chunks[0], chunks[1])
    assert not torch.equal(chunks[0], chunks[2])
    assert torch.equal(mine.get_state(), same.get_state())
    alone = generators(0)
    head.sample(DecoderInput(vectors(1)), alone)
    assert torch.equal(alone[0].get_state(), mine.get_state())  # however far its neighbors wrote


def test_each_place_is_drawn_with_its_own_random_number():
    head = decoder(temperature=1.0)
    even = torch.zeros(1, 1, 6)
    uniforms = torch.tensor([[0.05, 0.95, 0.4, 0.6]])
    assert [head.choose(even, uniforms, place).item() for place in range(4)] == [0, 5, 2, 3]
    assert head.choose(even.expand(1, 4, 6), uniforms, 0).tolist() == [[0, 5, 2, 3]]


def test_a_loss_of_tokens_is_their_mean_in_each_chunk_weighted_by_its_actions():
    """By hand: the entropies of even scores over 4 symbols are ln 4, of a sure and right one 0."""
    logits = torch.zeros(3, 2, 4)
    logits[1, 0, 2] = 100.0
    tokens = torch.tensor([[1, 3], [2, -1], [-1, -1]])
    elements = torch.tensor([[True] * 3, [True, True, False], [False] * 3])[:, :, None]
    loss, even = token_loss(logits, tokens, elements), math.log(4)
    assert float(loss.total) == pytest.approx(3 * even + 2 * 0)
    assert float(loss.count) == 5
    assert float(loss.parts["tokens"]) == pytest.approx(2 * even / 3)  # over the three tokens
    assert float(loss.parts["accuracy"]) == pytest.approx(1 / 3)  # of even scores the first symbol is taken


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature):
    head = decoder(temperature=temperature)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -100.0, 0.5]).expand(20_000, 1, 6)
    uniforms = ((torch.arange(20_000) + 0.5) / 20_000)[:, None]
    often = head.choose(logits, uniforms, 0).flatten().bincount(minlength=6) / 20_000
    torch.testing.assert_close(often, (logits[0, 0] / temperature).softmax(-1), atol=2e-4, rtol=0)


def test_without_temperature_the_generators_are_left_alone():
    head, (mine,) = decoder(), generators(0)
    before = mine.get_state()
    torch.testing.assert_close(head.sample(DecoderInput(vectors(1)), [mine]), head.sample(DecoderInput(vectors(1))))
    assert torch.equal(mine.get_state(), before)


def test_what_is_no_chunk_becomes_the_nearest_one_and_is_counted(caplog):
    head = decoder(Levels(ends=True))
    head.generate = lambda inputs, uniforms: torch.full((len(inputs.context), head.length), 6)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert head.sample(DecoderInput(vectors())).eq(0).all()
    assert head.invalid == 12
    message = "{} sequences so far were invalid for the Levels and were replaced by the nearest defined chunk"
    assert [r.getMessage() for r in caplog.records] == [message.format(n) for n in (4, 12)]


def test_under_autocast_logits_are_float32():
    head = decoder()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head.logits(DecoderInput(vectors()), head.codec.encode(actions()))
        assert head.loss(DecoderInput(vectors()), actions(), ALL).value.isfinite()
        assert head.sample(DecoderInput(vectors())).shape == (4, N, SPACE.size)
    assert logits.dtype == torch.float32


def test_the_codec_is_shared_with_the_policy_also_in_a_checkpoint(tmp_path):
    made = []
    for seed in (0, 1):
        codec = Levels()
        made.append(torch.nn.ModuleDict({"codec": codec, "decoder": decoder(codec)}))
        torch.nn.init.normal_(made[-1]["decoder"].out.weight, generator=torch.Generator().manual_seed(seed))
    first, second = made
    first["codec"].values.mul_(0.5)
    weights.save(first, tmp_path / "model.safetensors")
    weights.load(second, tmp_path / "model.safetensors")
    inputs = DecoderInput(vectors())
    torch.testing.assert_close(second["decoder"].sample(inputs), first["decoder"].sample(inputs), rtol=0, atol=0)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="width 30 must be a multiple of heads 4"):
        build(TokensDecoder.Config, {"width": 30, "heads": 4})
    with pytest.raises(ConfigError, match="TokensDecoder writes tokens, but actions are continuous: give the model a"):
        TokensDecoder(TokensDecoder.Config(), setting(MODEL, None))


def test_the_context_may_have_any_width():
    assert decoder().enter.in_features == C
