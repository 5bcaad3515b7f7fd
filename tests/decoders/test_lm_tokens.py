import copy

import numpy as np
import pytest
import torch
from torch import nn

from anyvla.config import build
from anyvla.decoders.base import DecoderInput
from anyvla.decoders.lm_tokens import LMTokensDecoder
from anyvla.representations.bins import BinsCodec
from tests.decoders.token_parts import (
    ALL,
    SPACE,
    Levels,
    N,
    actions,
    after,
    backbone,
    make_spec,
    overfit,
    record_logits,
    short_and_long,
    vectors,
)

VARIANTS = [{"ids": ids, "decoding": way} for ids in ("end", "added") for way in ("autoregressive", "parallel")]


@pytest.fixture
def model():
    return backbone()


def make_decoder(model, codec=None, **keys):
    torch.manual_seed(0)
    return LMTokensDecoder(build(LMTokensDecoder.Config, keys), make_spec(model, codec or Levels()))


def name(keys):
    return "-".join(keys.values())


def untie_lm_head(model):
    """Give the model a separate LM head, frozen as an untied one is when a backbone is built."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    return model


@pytest.mark.parametrize("keys", VARIANTS, ids=name)
def test_one_pass_over_written_tokens_scores_them_as_writing_did(model, keys):
    decoder = make_decoder(model, **keys)
    tokens, logits = record_logits(decoder, after(model))
    with torch.no_grad():
        torch.testing.assert_close(decoder.logits(after(model), tokens), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("keys", VARIANTS, ids=name)
def test_the_chunks_of_an_overfitted_batch_are_written(model, keys, ends):
    codec, chunks = Levels(ends=ends), short_and_long()
    decoder = make_decoder(model, codec, **keys)
    trained = [w for w in model.parameters() if w.requires_grad]
    loss = overfit(decoder, trained, lambda: after(model), chunks)
    assert loss.parts["accuracy"] == 1
    with torch.no_grad():
        torch.testing.assert_close(decoder.sample(after(model)), codec.decode(codec.encode(chunks))[0])
    assert decoder.invalid == 0


@pytest.mark.parametrize("keys", VARIANTS, ids=name)
def test_a_step_depends_on_no_other_step_or_suffix_of_its_window(model, keys):
    decoder = make_decoder(model, **keys)
    together, tokens = after(model), torch.randint(0, 6, (4, decoder.length))
    with torch.no_grad():
        whole = decoder.logits(together, tokens)
        for step in range(4):
            alone = DecoderInput(together.context[[step]], together.continuation.select([step]))
            torch.testing.assert_close(decoder.logits(alone, tokens[[step]]), whole[[step]], atol=1e-4, rtol=0)
            torch.testing.assert_close(
                record_logits(decoder, alone)[1], record_logits(decoder, together)[1][[step]], atol=1e-4, rtol=0
            )


def test_positions_see_later_ones_only_in_parallel_decoding(model):
    for way, sees in (("autoregressive", False), ("parallel", True)):
        decoder = make_decoder(model, ids="added", decoding=way)
        tokens = torch.zeros(4, decoder.length, dtype=torch.int64)
        with torch.no_grad():
            before = decoder.logits(after(model), tokens)
            if decoder.places is not None:
                decoder.places[-1] += 1
            tokens[:, -2] = 5  # the token before the last
            change = (decoder.logits(after(model), tokens) - before).abs().amax((0, 2))
        assert (change[:-1] > 1e-5).all() == sees
        assert change[-1] > 1e-5


def test_each_token_reads_one_position_and_leaves_the_cache_unchanged(model):
    decoder, inputs, lengths = make_decoder(model), after(model, (1, 1, 1)), []
    handle = model.embedding.register_forward_pre_hook(lambda _, given: lengths.append(tuple(given[0].shape)))
    with torch.no_grad():
        first = decoder.generate(inputs, None)
        handle.remove()
        read = [shape for shape in lengths if len(shape) == 2]
        assert read == [(3, 1)] * decoder.length
        assert torch.equal(decoder.generate(inputs, None), first)


def test_ids_at_the_end_of_the_vocabulary_are_its_last_regular_ones(model):
    last = model.last_token_ids(6)
    assert last.tolist() == sorted(last.tolist())
    assert make_decoder(model).vocabulary.ids.tolist() == last.tolist()
    with_end = make_decoder(model, Levels(ends=True)).vocabulary.ids
    assert with_end[:6].tolist() == last.tolist()  # token k is the same id, whether chunks end or not
    assert with_end[6] == model.last_token_ids(7)[0]


def test_bins_are_written_in_the_ids_of_openvla(model):
    chunks = torch.cat([actions(), torch.tensor([[[-1.0, 1.0, 0.0, 0.3], [-1.0, 1.0, -0.0, 0.999]]])])
    codec = BinsCodec(BinsCodec.Config(), N, SPACE)
    published = model.tokenizer.vocab_size - np.digitize(chunks.flatten(1).numpy(), np.linspace(-1, 1, 256))
    assert make_decoder(model, codec).vocabulary.ids[codec.encode(chunks)].tolist() == published.tolist()


def test_added_embeddings_are_as_large_as_those_of_the_model(model):
    decoder = make_decoder(model, Levels(size=300), ids="added")
    own = model.embed(torch.arange(300)).square().mean().sqrt()
    for given in (decoder.vocabulary.embed(torch.arange(300)), decoder.enter(torch.randn(300, 8))):
        assert 0.7 < given.square().mean().sqrt() / own < 1.4


@pytest.mark.parametrize("ids", ["end", "added"])
def test_the_rows_of_written_tokens_receive_gradients(model, ids):
    decoder = make_decoder(untie_lm_head(model), ids=ids)
    chunks = actions()
    decoder.loss(after(model), chunks, ALL).value.backward()
    read = decoder.targets(chunks, ALL)[:, :-1].unique()
    rows = model.embedding.weight.grad[decoder.vocabulary.ids] if ids == "end" else decoder.vocabulary.embedding.grad
    scores = model.lm_head.weight.grad if ids == "end" else decoder.vocabulary.head.weight.grad
    assert (rows[read].abs().amax(1) > 0).all()
    assert (scores[decoder.vocabulary.ids if ids == "end" else slice(None)].abs().amax(1) > 0).all()
    if ids == "end":
        assert scores[: model.last_token_ids(6)[0]].eq(0).all()  # no other id is scored


def test_a_head_is_trained_if_the_language_model_is_and_its_ids_are_used():
    for train, ids, trained in ((True, "end", True), (False, "end", False), (True, "added", False)):
        model = untie_lm_head(backbone(train={"language": train}))
        make_decoder(model, ids=ids)
        assert model.lm_head.weight.requires_grad == trained


def test_earlier_chunks_are_shown_as_the_embeddings_of_their_tokens(model):
    chunks = short_and_long()
    for ends, filler in ((False, 0), (True, 6)):
        codec = Levels(ends=ends)
        decoder = make_decoder(model, codec)
        tokens = codec.encode(chunks)
        past = decoder.embed_chunks(chunks)
        assert past.shape == (4, codec.length, model.width)
        expected = model.embed(decoder.vocabulary.ids[torch.where(tokens < 0, filler, tokens)])
        torch.testing.assert_close(past, expected)
    assert make_decoder(model, ids="added").embed_chunks(chunks).shape == past.shape


def test_parallel_decoding_scores_each_token_at_its_own_position(model):
    """The context comes first, then one position for each token."""
    decoder = make_decoder(model, ids="added", decoding="parallel")
    seen = []
    model.register_forward_hook(lambda _, given, hidden: seen.append(hidden))
    with torch.no_grad():
        logits = decoder.logits(after(model, (1,) * 4), torch.zeros(4, decoder.length, dtype=torch.int64))
    assert seen[-1].shape[1] == decoder.length + 1
    torch.testing.assert_close(logits, seen[-1][:, 1:] @ decoder.vocabulary.head.weight.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["autoregressive", "parallel"])
def test_a_suffix_follows_the_visible_positions_of_its_step(model, way):
    decoder, inputs = make_decoder(model, decoding=way), after(model)
    first = inputs.continuation.visible.sum(1)  # positions before the suffix of each step
    seen = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].positions))
    with torch.no_grad():
        record_logits(decoder, inputs)
    read = torch.cat([inputs.continuation.unfold(p, p.shape[1] // 2) for p in seen], 1)
    assert torch.equal(read, first[:, None] + torch.arange(decoder.suffix_length))


def test_a_temperature_samples_with_the_generator_of_each_step(model):
    for way in ("autoregressive", "parallel"):
        decoder = make_decoder(model, decoding=way, temperature=3.0)
        inputs = after(model)
        with torch.no_grad():
            seeds = [torch.Generator().manual_seed(s) for s in range(4)]
            again = [torch.Generator().manual_seed(s) for s in range(3, 4)]
            alone = DecoderInput(inputs.context[3:], inputs.continuation.select([3]))
            chunks = decoder.sample(inputs, seeds)
            torch.testing.assert_close(decoder.sample(alone, again), chunks[3:])
            assert not torch.equal(decoder.sample(inputs, seeds), chunks)  # their next numbers


def test_the_backbone_is_no_part_of_the_decoder_and_a_copy_uses_its_own(model):
    decoder = make_decoder(model)
    assert not {*decoder.parameters()} & {*model.parameters()}
    assert not [key for key in decoder.state_dict() if key.startswith("vocabulary")]
    both = copy.deepcopy(nn.ModuleDict({"backbone": model, "decoder": decoder}))
    with torch.no_grad():
        both["backbone"].embedding.weight.zero_()
    tokens = torch.arange(6)
    assert both["decoder"].vocabulary.embed(tokens).eq(0).all()
    assert decoder.vocabulary.embed(tokens).ne(0).any()


def test_under_autocast_logits_are_float32_and_nearly_equal(model):
    decoder, tokens = make_decoder(model), torch.randint(0, 6, (4, 8))
    with torch.no_grad():
        exact = decoder.logits(after(model), tokens)
        with torch.autocast("cpu", torch.bfloat16):
            logits = decoder.logits(after(model), tokens)
            assert decoder.sample(after(model)).isfinite().all()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)


def test_too_many_ids_and_a_missing_continuation_are_refused(model):
    with pytest.raises(ValueError, match=r"2000 ids are more than the vocabulary of \d+ regular tokens.*ids: added"):
        make_decoder(model, Levels(size=2000))
    assert make_decoder(model, Levels(size=2000), ids="added").symbols == 2000
    with pytest.raises(ValueError, match="its input has no continuation"):
        make_decoder(model).sample(DecoderInput(vectors()))
