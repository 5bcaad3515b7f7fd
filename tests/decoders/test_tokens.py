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
    make_spec,
    overfit,
    record_logits,
    short_and_long,
    vectors,
)

MODEL = backbone()


def make_decoder(codec=None, **keys):
    torch.manual_seed(0)
    config = build(TokensDecoder.Config, {"width": 32, "layers": 2, "heads": 2} | keys)
    return TokensDecoder(config, make_spec(MODEL, codec or Levels()))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("ends", [False, True])
def test_one_pass_over_written_tokens_scores_them_as_writing_did(ends):
    decoder = make_decoder(Levels(ends=ends))
    tokens, logits = record_logits(decoder, DecoderInput(vectors()))
    with torch.no_grad():
        torch.testing.assert_close(decoder.logits(DecoderInput(vectors()), tokens)[:, : logits.shape[1]], logits)


def test_a_position_sees_only_earlier_tokens():
    decoder = make_decoder()
    tokens = torch.zeros(1, decoder.length, dtype=torch.int64)
    other = tokens.clone()
    other[:, 3:] = 5
    one, two = (decoder.logits(DecoderInput(vectors(1)), t) for t in (tokens, other))
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert (one[:, 4] - two[:, 4]).abs().max() > 1e-4


@pytest.mark.parametrize("ends", [False, True])
def test_the_chunks_of_an_overfitted_batch_are_written(ends):
    codec, chunks = Levels(ends=ends), short_and_long()
    decoder = make_decoder(codec)
    loss = overfit(decoder, (), lambda: DecoderInput(vectors()), chunks)
    assert loss.parts["accuracy"] == 1
    torch.testing.assert_close(decoder.sample(DecoderInput(vectors())), codec.decode(codec.encode(chunks))[0])
    assert decoder.invalid == 0


def test_the_loss_is_the_cross_entropy_of_the_tokens_of_valid_actions():
    decoder, chunks, mask = make_decoder(), actions(), ALL.clone()
    mask[2, 1:], mask[3] = False, False
    loss = decoder.loss(DecoderInput(vectors()), chunks, mask)
    tokens = decoder.codec.encode(chunks)
    each = torch.nn.functional.cross_entropy(
        decoder.logits(DecoderInput(vectors()), tokens).transpose(1, 2), tokens, reduction="none"
    )
    valid = mask[..., None].expand(-1, -1, SPACE.size).flatten(1)
    torch.testing.assert_close(loss.value, each[valid].mean())
    assert loss.count == valid.sum()
    chunks[~mask] = 0.7
    torch.testing.assert_close(decoder.loss(DecoderInput(vectors()), chunks, mask).value, loss.value)
    nothing = decoder.loss(DecoderInput(vectors()), chunks, torch.zeros_like(mask))
    assert nothing.value == 0
    nothing.value.backward()


def test_tokens_of_dims_that_are_not_learned_are_written_and_not_learned():
    codec = Levels()
    codec.elementwise = True
    decoder, dims = make_decoder(codec), torch.tensor([[True, False, True, True]] * 3 + [[True] * 4])
    inputs, chunks = DecoderInput(vectors(), learned_dims=dims), actions() * dims[:, None]
    tokens = codec.encode(chunks)
    each = torch.nn.functional.cross_entropy(decoder.logits(inputs, tokens).transpose(1, 2), tokens, reduction="none")
    free = dims[:, None].expand(-1, N, -1).flatten(1)  # action by action
    loss = decoder.loss(inputs, chunks, ALL)
    torch.testing.assert_close(loss.value, each[free].mean())
    assert loss.count == free.sum() == N * 13
    written = decoder.sample(inputs)
    torch.testing.assert_close(written[:3, :, 1], torch.full((3, N), -0.2))  # the first of the two levels beside zero


def test_the_end_token_follows_the_last_token_if_there_is_room():
    decoder, chunks = make_decoder(Levels(ends=True)), torch.full((3, N, SPACE.size), -1.0)
    chunks[1] = torch.linspace(-1, 1, decoder.length).view(N, -1)
    chunks[1, 1, 3] = -1.0  # the last element differs from the one before: all are written
    mask = torch.ones(3, N, dtype=torch.bool)
    mask[2] = False
    targets = decoder.targets(chunks, mask)
    assert targets[0].tolist() == [0, 6, -1, -1, -1, -1, -1, -1]
    assert 6 not in targets[1]
    assert -1 not in targets[1]
    assert (targets[2] == -1).all()


def test_writing_stops_after_the_last_end_and_later_tokens_do_not_count():
    codec, chunks = Levels(ends=True), actions()
    chunks[:] = chunks[:, :1, :1]  # one token each, and the end
    decoder = make_decoder(codec)
    overfit(decoder, (), lambda: DecoderInput(vectors()), chunks)
    tokens, logits = record_logits(decoder, DecoderInput(vectors()))
    assert logits.shape[1] == 2
    assert (tokens[:, 1] == codec.size).all()
    tokens[:, 2:] = 3
    torch.testing.assert_close(codec.decode(tokens)[0], decoder.sample(DecoderInput(vectors())))


def test_the_end_is_never_the_first_token():
    decoder = make_decoder(Levels(ends=True))
    with torch.no_grad():
        decoder.out.bias[6] = 100.0
    tokens, logits = record_logits(decoder, DecoderInput(vectors()))
    assert (logits.argmax(-1)[:, 0] == 6).all()
    assert (tokens[:, 0] < 6).all()
    decoder.sample(DecoderInput(vectors()))
    assert decoder.invalid == 0


def test_a_chunk_does_not_depend_on_its_neighbors():
    for keys in ({}, {"temperature": 1.0}):
        decoder = make_decoder(Levels(ends=True), **keys)
        together = decoder.sample(DecoderInput(vectors()), generators(0, 1, 2, 3))
        alone = decoder.sample(DecoderInput(vectors()[2:3]), generators(2))
        torch.testing.assert_close(together[2:3], alone)


def test_a_generator_decides_its_chunk_and_gives_each_step_as_many_numbers():
    decoder = make_decoder(Levels(ends=True), temperature=2.0)
    inputs = DecoderInput(vectors(1).expand(3, -1))
    mine, same, other = generators(0, 0, 1)
    chunks = decoder.sample(inputs, [mine, same, other])
    torch.testing.assert_close(chunks[0], chunks[1])
    assert not torch.equal(chunks[0], chunks[2])
    assert torch.equal(mine.get_state(), same.get_state())
    alone = generators(0)
    decoder.sample(DecoderInput(vectors(1)), alone)
    assert torch.equal(alone[0].get_state(), mine.get_state())  # however far its neighbors wrote


def test_each_position_is_sampled_with_its_own_random_number():
    decoder = make_decoder(temperature=1.0)
    even = torch.zeros(1, 1, 6)
    uniforms = torch.tensor([[0.05, 0.95, 0.4, 0.6]])
    assert [decoder.choose(even, uniforms, position).item() for position in range(4)] == [0, 5, 2, 3]
    assert decoder.choose(even.expand(1, 4, 6), uniforms, 0).tolist() == [[0, 5, 2, 3]]


def test_a_loss_of_tokens_is_their_mean_in_each_chunk_weighted_by_its_actions():
    """By hand: the cross-entropy of equal scores over 4 symbols is ln 4, of a certain and right one 0."""
    logits = torch.zeros(3, 2, 4)
    logits[1, 0, 2] = 100.0
    tokens = torch.tensor([[1, 3], [2, -1], [-1, -1]])
    elements = torch.tensor([[True] * 3, [True, True, False], [False] * 3])[:, :, None]
    loss, even = token_loss(logits, tokens, elements), math.log(4)
    assert float(loss.total) == pytest.approx(3 * even + 2 * 0)
    assert float(loss.count) == 5
    assert float(loss.parts["tokens"]) == pytest.approx(2 * even / 3)  # over the three tokens
    assert float(loss.parts["accuracy"]) == pytest.approx(1 / 3)  # argmax takes the first of equal scores


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_are_sampled_with_the_probabilities_of_the_softmax(temperature):
    decoder = make_decoder(temperature=temperature)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -100.0, 0.5]).expand(20_000, 1, 6)
    uniforms = ((torch.arange(20_000) + 0.5) / 20_000)[:, None]
    often = decoder.choose(logits, uniforms, 0).flatten().bincount(minlength=6) / 20_000
    torch.testing.assert_close(often, (logits[0, 0] / temperature).softmax(-1), atol=2e-4, rtol=0)


def test_without_temperature_the_generators_are_left_alone():
    decoder, (mine,) = make_decoder(), generators(0)
    before = mine.get_state()
    torch.testing.assert_close(
        decoder.sample(DecoderInput(vectors(1)), [mine]), decoder.sample(DecoderInput(vectors(1)))
    )
    assert torch.equal(mine.get_state(), before)


def test_an_invalid_sequence_becomes_the_nearest_chunk_and_is_counted(caplog):
    decoder = make_decoder(Levels(ends=True))
    decoder.generate = lambda inputs, uniforms: torch.full((len(inputs.context), decoder.length), 6)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert decoder.sample(DecoderInput(vectors())).eq(0).all()
    assert decoder.invalid == 12
    message = "{} sequences so far were invalid for the Levels and were replaced by the nearest defined chunk"
    assert [r.getMessage() for r in caplog.records] == [message.format(n) for n in (4, 12)]


def test_under_autocast_logits_are_float32():
    decoder = make_decoder()
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder.logits(DecoderInput(vectors()), decoder.codec.encode(actions()))
        assert decoder.loss(DecoderInput(vectors()), actions(), ALL).value.isfinite()
        assert decoder.sample(DecoderInput(vectors())).shape == (4, N, SPACE.size)
    assert logits.dtype == torch.float32


def test_the_codec_is_shared_with_the_policy_also_in_a_checkpoint(tmp_path):
    made = []
    for seed in (0, 1):
        codec = Levels()
        made.append(torch.nn.ModuleDict({"codec": codec, "decoder": make_decoder(codec)}))
        torch.nn.init.normal_(made[-1]["decoder"].out.weight, generator=torch.Generator().manual_seed(seed))
    first, second = made
    first["codec"].values.mul_(0.5)
    weights.save(first, tmp_path / "model.safetensors")
    weights.load(second, tmp_path / "model.safetensors")
    inputs = DecoderInput(vectors())
    torch.testing.assert_close(second["decoder"].sample(inputs), first["decoder"].sample(inputs), rtol=0, atol=0)


def test_a_wrong_width_and_a_missing_codec_are_refused():
    with pytest.raises(ConfigError, match="width 30 must be a multiple of heads 4"):
        build(TokensDecoder.Config, {"width": 30, "heads": 4})
    with pytest.raises(ConfigError, match="TokensDecoder writes tokens, but actions are continuous: give the model a"):
        TokensDecoder(TokensDecoder.Config(), make_spec(MODEL, None))


def test_the_context_may_have_any_width():
    assert make_decoder().enter.in_features == C
