"""The decoder with a KV cache scores as ESPnet's, keeps what it says, and is ESPnet's wherever nothing is asked for."""

import inspect

import pytest
import torch
from espnet2.asr.decoder import transformer_decoder
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.batch_beam_search_online import BatchBeamSearchOnline
from espnet2.legacy.nets.beam_search import BeamSearch
from espnet2.legacy.nets.beam_search_partially_AR import PartiallyARBeamSearch
from espnet2.legacy.nets.scorers.length_bonus import LengthBonus
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_mla.models.ctc import PrefixScorer
from espnet_mla.models.decoder import TransformerDecoder

ESPNET = transformer_decoder.TransformerDecoder
ESPNET_CTC = PrefixScorer.__mro__[1]
VOCABULARY, D = 13, 16
SIZES = {"attention_heads": 4, "linear_units": 8, "num_blocks": 2}
CHOICES = [
    ("mha", {}),
    ("gqa", {"num_kv_heads": 1}),
    ("gqa", {"num_kv_heads": 2}),
    ("mla", {"kv_lora_rank": 6}),
    ("mtla", {"kv_lora_rank": 6}),
    ("mtla", {"kv_lora_rank": 6, "down_rate": 3}),
]


def build(decoder_class=TransformerDecoder, seed=0, **conf):
    torch.manual_seed(seed)
    return decoder_class(VOCABULARY, D, **{**SIZES, **conf}).eval()


def chosen(kind, options, **conf):
    parts = ("self",) if kind == "mtla" else ("self", "src")
    new = {f"{part}_attention_{key}": value for part in parts for key, value in
           (("layer_type", kind), ("conf", options))}  # fmt: skip
    return build(**new, **conf)


def teacher_forced(decoder, ys, x, lengths=None):
    """Log probabilities after every prefix of ys, all at once: (hypotheses, length, vocabulary)."""
    lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
    out, _ = decoder(x, lengths, ys, torch.full((len(ys),), ys.shape[1]))
    return out.log_softmax(-1)


class CTC(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.linear = torch.nn.Linear(D, VOCABULARY)

    def log_softmax(self, x):
        return (3 * self.linear(x)).log_softmax(-1)


def search(decoder, ctc_scorer, kind=BatchBeamSearch, beam=4, ctc_weight=0.3, **options):
    scorers = {"decoder": decoder, "ctc": ctc_scorer(CTC(), VOCABULARY - 1), "length_bonus": LengthBonus(VOCABULARY)}
    weights = {"decoder": 1 - ctc_weight, "ctc": ctc_weight, "length_bonus": 0.1}
    key = None if ctc_weight == 1.0 else "full"
    return kind(scorers, weights, beam, VOCABULARY, VOCABULARY - 1, VOCABULARY - 1, pre_beam_score_key=key, **options)


def assert_same_hypotheses(ours, theirs):
    assert [h.yseq.tolist() for h in ours] == [h.yseq.tolist() for h in theirs]
    torch.testing.assert_close(
        torch.stack([torch.as_tensor(h.score) for h in ours]), torch.stack([torch.as_tensor(h.score) for h in theirs]),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_without_new_values_network_and_training_are_espnets_to_the_bit():
    ours, theirs = build(), build(ESPNET)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    ys, x = torch.randint(0, VOCABULARY, (2, 5)), torch.randn(2, 9, D)
    ours.train(), theirs.train()
    for decoder in (ours, theirs):
        torch.manual_seed(3)
        decoder(x, torch.tensor([9, 6]), ys, torch.tensor([5, 3]))[0].sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_building_it_draws_the_random_numbers_that_espnets_draws():
    build()
    after_ours = torch.rand(1)
    build(ESPNET)
    assert torch.equal(after_ours, torch.rand(1))


def test_espnets_keys_keep_their_defaults():
    theirs, ours = inspect.signature(ESPNET).parameters, inspect.signature(TransformerDecoder).parameters
    assert {key: ours[key].default for key in theirs} == {key: value.default for key, value in theirs.items()}
    assert {key: ours[key].default for key in ours if key not in theirs} == {
        "self_attention_layer_type": "mha", "self_attention_conf": {},
        "src_attention_layer_type": "mha", "src_attention_conf": {},
    }  # fmt: skip


@pytest.mark.parametrize("conf", [{}, {"concat_after": True}, {"normalize_before": False}, {"qk_norm": True}])
@pytest.mark.parametrize(("kind", "options"), CHOICES)
@settings(max_examples=8, deadline=None)
@given(
    utterances=st.integers(1, 3), beam=st.integers(1, 4), length=st.sampled_from([1, 2, 5, 20]), seed=st.integers(0, 99)
)
def test_scores_step_by_step_equal_all_at_once(kind, options, conf, utterances, beam, length, seed):
    """Beams of several utterances of different lengths, reordered at random between the steps."""
    if conf.get("qk_norm") and kind != "mha":
        return
    decoder = chosen(kind, options, seed=seed, **conf)
    x = torch.randn(utterances, 9, D)
    lengths = torch.tensor([9, *torch.randint(1, 10, (utterances - 1,))])
    xs = x.repeat_interleave(beam, 0)
    mask = (torch.arange(9) < lengths[:, None])[:, None].repeat_interleave(beam, 0)
    ys = torch.randint(0, VOCABULARY, (utterances * beam, 1))
    state = [decoder.batch_init_state(x, xs_lengths=lengths)] * len(ys)
    with torch.no_grad():
        for _ in range(length):
            scores, state = decoder.batch_score(ys, state, xs, xs_mask=mask)
            torch.testing.assert_close(
                scores, teacher_forced(decoder, ys, xs, lengths.repeat_interleave(beam))[:, -1], rtol=1e-4, atol=1e-5
            )
            best = torch.stack([torch.randperm(beam * VOCABULARY)[:beam] for _ in range(utterances)])
            rows = (best // VOCABULARY + torch.arange(utterances)[:, None] * beam).flatten()
            ys = torch.cat((ys[rows], (best % VOCABULARY).view(-1, 1)), dim=1)
            state = decoder.batch_select_state(state, best)


@pytest.mark.parametrize(("kind", "options"), CHOICES)
def test_one_hypothesis_is_scored_from_any_state_of_the_past(kind, options):
    decoder = chosen(kind, options)
    x, ys = torch.randn(7, D), torch.randint(0, VOCABULARY, (5,))
    states = [decoder.init_state(x)]
    with torch.no_grad():
        for length in range(1, 6):
            scores, state = decoder.score(ys[:length], states[-1], x)
            states.append(state)
        expected = teacher_forced(decoder, ys[None], x[None])[0]
        torch.testing.assert_close(scores, expected[-1], rtol=1e-4, atol=1e-5)
        again, _ = decoder.score(ys[:3], states[2], x)
    torch.testing.assert_close(again, expected[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("down_rate", [2, 3])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_merged_tokens_are_scored_from_any_state_of_any_search(down_rate, seed):
    """What one way has merged into an entry, another from the same state does not see."""
    decoder = chosen("mtla", {"kv_lora_rank": 6, "down_rate": down_rate}, seed=seed)
    torch.manual_seed(seed)
    x, pasts = torch.randn(7, D), []
    xs = x.expand(2, -1, -1)
    pasts = [(torch.randint(0, VOCABULARY, (2, 1)), [decoder.batch_init_state(x)] * 2)]
    if seed % 2:
        pasts[0] = (pasts[0][0], decoder.extend_state(pasts[0][1]))
    with torch.no_grad():
        for _ in range(12):
            ys, state = pasts[int(torch.randint(max(0, len(pasts) - 4), len(pasts), ()))]
            scores, state = decoder.batch_score(ys, state, xs)
            torch.testing.assert_close(scores, teacher_forced(decoder, ys, xs)[:, -1], rtol=1e-4, atol=1e-5)
            best = torch.randperm(2 * VOCABULARY)[:2]
            state = decoder.batch_select_state(state, best[None])
            pasts.append((torch.cat((ys[best // VOCABULARY], (best % VOCABULARY)[:, None]), 1), state))


def test_hidden_states_are_espnets():
    ours, theirs = build(), build(ESPNET)
    x, ys = torch.randn(6, D), torch.tensor([[12, 3, 4], [12, 5, 1]])
    with torch.no_grad():
        (scores, hidden), _ = ours.batch_score(ys, [None, None], x.expand(2, -1, -1), return_hs=True)
        (expected, expected_hidden), _ = theirs.batch_score(ys, [None, None], x.expand(2, -1, -1), return_hs=True)
        one, one_hidden, _ = ours.score(ys[0], ours.init_state(x), x, return_hs=True)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden, expected_hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one_hidden, expected_hidden[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("streaming", [True, False])
def test_states_that_were_let_go_are_made_again_from_the_tokens(streaming):
    """A tree is made anew three times here; a streaming search lets none go."""
    decoder = build()
    x, ys = torch.randn(6, D), torch.randint(0, VOCABULARY, (2, 30))
    xs, state, kept = x.expand(2, -1, -1), [decoder.batch_init_state(x)] * 2, []
    if streaming:
        state = decoder.extend_state(state)
    with torch.no_grad():
        for length in range(1, 30):
            _, state = decoder.batch_score(ys[:, :length], state, xs)
            kept.append([decoder.select_state(state, i) for i in (0, 1)])
        trees = list({id(states[0].tokens): states[0].tokens for states in kept}.values())
        assert [bool(tree) for tree in trees] == [*[streaming] * 3, True]
        for length, states in ((2, kept[0]), (9, kept[7]), (29, kept[27]), (4, [kept[2][0], kept[3][1]])):
            scores, _ = decoder.batch_score(ys[:, :length], states, xs)
            expected = teacher_forced(decoder, ys[:, :length], xs)[:, -1]
            torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_output_that_grows_is_attended_to_whole():
    decoder = build()
    x, ys = torch.randn(9, D), torch.randint(0, VOCABULARY, (3, 2))
    with torch.no_grad():
        _, state = decoder.batch_score(ys[:, :1], [decoder.batch_init_state(x[:4])] * 3, x[:4].expand(3, -1, -1))
        scores, _ = decoder.batch_score(ys, state, x.expand(3, -1, -1))
        # The first token has seen four frames only, as in ESPnet.
        theirs = build(ESPNET)
        _, state = theirs.batch_score(ys[:, :1], [None] * 3, x[:4].expand(3, -1, -1))
        expected, _ = theirs.batch_score(ys, state, x.expand(3, -1, -1))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_another_encoder_output_of_the_same_length_is_attended_to():
    x, other, ys = torch.randn(6, D), torch.randn(6, D), torch.randint(0, VOCABULARY, (1, 2))
    found = []
    with torch.no_grad():
        for decoder in (build(), build(ESPNET)):
            _, state = decoder.batch_score(ys[:, :1], [decoder.batch_init_state(x)], x[None])
            found.append(decoder.batch_score(ys, state, other[None])[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_search_that_goes_back_two_steps_and_hears_more_gets_espnets_scores():
    x, ys = torch.randn(12, D), torch.randint(0, VOCABULARY, (1, 4))
    found = []
    with torch.no_grad():
        for decoder in (build(), build(ESPNET)):
            states = [decoder.batch_init_state(x[:6])]
            if hasattr(decoder, "extend_state"):  # as ESPnet's streaming searches ask
                states = decoder.extend_state(states)
            kept = []
            for length in (1, 2, 3):
                _, states = decoder.batch_score(ys[:, :length], states, x[None, :6])
                states = [decoder.select_state(states, 0)]
                kept.append(states)
            found.append(decoder.batch_score(ys[:, :2], kept[0], x[None])[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), CHOICES)
def test_steps_pass_the_gradient_of_teacher_forcing(kind, options):
    x, ys, grads = torch.randn(1, 6, D), torch.randint(0, VOCABULARY, (1, 3)), []
    for steps in (True, False):
        decoder = chosen(kind, options)
        if steps:
            state, scores = [None], []
            for length in (1, 2, 3):
                score, state = decoder.batch_score(ys[:, :length], state, x)
                scores.append(score)
            torch.stack(scores, dim=1).square().sum().backward()
        else:
            teacher_forced(decoder, ys, x).square().sum().backward()
        grads.append([parameter.grad for parameter in decoder.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "options"), CHOICES)
def test_a_quantised_model_decodes(kind, options):
    decoder = chosen(kind, options)
    quantised = torch.quantization.quantize_dynamic(decoder, {torch.nn.Linear}, dtype=torch.float16)
    x, ys = torch.randn(6, D), torch.randint(0, VOCABULARY, (2, 1))
    with torch.no_grad():
        expected, found = (
            d.batch_score(ys, [d.batch_init_state(x)] * 2, x.expand(2, -1, -1))[0] for d in (decoder, quantised)
        )
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [BatchBeamSearch, BeamSearch])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bounds", [{}, {"maxlenratio": 0.6, "minlenratio": 0.2}, {"maxlenratio": -7.0}])
@pytest.mark.parametrize("normalize_length", [False, True])
def test_beam_search_finds_espnets_hypotheses(kind, ctc_weight, bounds, normalize_length):
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = search(build(), PrefixScorer, kind, ctc_weight=ctc_weight, normalize_length=normalize_length)(
            x, **bounds
        )
        theirs = search(build(ESPNET), ESPNET_CTC, kind, ctc_weight=ctc_weight, normalize_length=normalize_length)(
            x, **bounds
        )
    assert len(ours) > 0
    assert_same_hypotheses(ours[:5], theirs[:5])


def test_beam_search_of_several_utterances_finds_espnets_hypotheses():
    x = torch.randn(3, 20, D, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([20, 11, 16])
    with torch.no_grad():
        ours = search(build(), PrefixScorer)(x, x_lengths=lengths)
        theirs = search(build(ESPNET), ESPNET_CTC)(x, x_lengths=lengths)
    for mine, other in zip(ours, theirs, strict=True):
        assert_same_hypotheses(mine[:5], other[:5])


NUMBERS = {"mha": 2 * D, "gqa": 2 * 4, "mla": 6, "mtla": 6}


BLOCKS = {"block_size": 8, "hop_size": 4, "look_ahead": 2}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("seed", [3, 5, 110])
@pytest.mark.parametrize("blocks", [BLOCKS, {**BLOCKS, "incremental_decode": True}, {"block_size": 0}])
def test_espnets_streaming_search_finds_espnets_hypotheses(blocks, seed, gradient, monkeypatch):
    """It goes back two steps where a block may have cut a word, and never has to make a cache again for that."""
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(seed))
    made_again, advance = [], TransformerDecoder._advance

    def counting(self, ys, state, *args, **kwargs):
        made_again.append(ys.shape[1] > 1 and not state.tokens)
        return advance(self, ys, state, *args, **kwargs)

    monkeypatch.setattr(TransformerDecoder, "_advance", counting)
    found = []
    for decoder, ctc_scorer in ((build(), PrefixScorer), (build(ESPNET), ESPNET_CTC)):
        online = search(decoder, ctc_scorer, BatchBeamSearchOnline, **blocks)
        online.set_hyp_primer([VOCABULARY - 1])
        with torch.set_grad_enabled(gradient):
            for start in range(0, 40, 10):
                heard = x[start : start + 10] if blocks["block_size"] else x[: start + 10]
                hypotheses = online(heard, maxlenratio=0.75, is_final=start == 30)
        found.append(hypotheses)
    assert len(found[0]) > 0 and made_again.count(True) == 0
    assert_same_hypotheses(found[0][:5], found[1][:5])


@pytest.mark.parametrize(("kind", "options"), [CHOICES[0], CHOICES[1], CHOICES[3], CHOICES[4]])
@pytest.mark.parametrize("beam", [2, 5])
def test_the_cache_is_as_large_as_it_says_and_the_sources_does_not_depend_on_the_beam(kind, options, beam):
    decoder = chosen(kind, options)
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = search(decoder, PrefixScorer, beam=beam)(x, maxlenratio=-6.0)
    longest = max(len(h.yseq) for h in found) - 1  # the last token is not gone on from
    frame = SIZES["num_blocks"] * NUMBERS[kind] * 4
    source = SIZES["num_blocks"] * NUMBERS["mha" if kind == "mtla" else kind] * 4
    assert decoder.cache_bytes.source_attention == 20 * source
    entries = -(-longest // 2) if kind == "mtla" else longest
    assert frame * entries <= decoder.cache_bytes.self_attention <= frame * entries * beam


def test_hypotheses_share_the_tokens_that_they_have_in_common():
    """Those that have ended hold nothing that the others do not."""
    decoder = build()
    with torch.no_grad():
        found = search(decoder, PrefixScorer, beam=10)(torch.randn(20, D), maxlenratio=-40.0)
    trees = {id(h.states["decoder"].tokens): h.states["decoder"].tokens for h in found}.values()
    one_token = SIZES["num_blocks"] * NUMBERS["mha"] * 4
    kept = sum(cache.nbytes for tree in trees for cache in tree.trimmed())
    assert kept <= decoder.cache_bytes.self_attention < 0.7 * 10 * 40 * one_token


@pytest.mark.parametrize(("kind", "options"), CHOICES)
def test_partially_autoregressive_scores_equal_all_at_once(kind, options):
    decoder = chosen(kind, options)
    x, ys = torch.randn(8, D), torch.randint(0, VOCABULARY, (3, 4))
    lengths = torch.tensor([4, 2, 3])
    with torch.no_grad():
        begin = [decoder.batch_init_state(x)] * 3  # what ESPnet's search gives
        scores, _ = decoder.batch_score_partially_AR(ys, begin, x.expand(3, -1, -1), lengths)
        expected = teacher_forced(decoder, ys, x.expand(3, -1, -1))
    torch.testing.assert_close(scores, expected[torch.arange(3), lengths - 1], rtol=1e-4, atol=1e-5)


def test_partially_autoregressive_search_finds_espnets_hypotheses():
    x, found = torch.randn(12, D), []
    for decoder in (build(), build(ESPNET)):
        # One token more, the mask, as ESPnet's program has it.
        kind = PartiallyARBeamSearch(
            {"decoder": decoder}, {"decoder": 1.0}, 3, VOCABULARY + 1, VOCABULARY - 1, VOCABULARY - 1,
            pre_beam_score_key="full",
        )  # fmt: skip
        kind.init_masks()
        for primer, end in (([VOCABULARY - 1], 4), ([VOCABULARY - 1, 5], 7)):
            kind.add_mask(primer, end)
        with torch.no_grad():
            found.append([(h.yseq.tolist(), float(h.score)) for h in kind(x, max_seq_len=6)])
    assert [tokens for tokens, _ in found[0]] == [tokens for tokens, _ in found[1]] and found[0]
    assert [score for _, score in found[0]] == pytest.approx([score for _, score in found[1]], rel=1e-5)


@pytest.mark.parametrize(("kind", "options"), CHOICES)
def test_gradient_checkpointing_changes_no_gradient(kind, options):
    grads = []
    for layers in ([], [1, 2]):
        decoder = chosen(kind, options, gradient_checkpoint_layers=layers)
        x = torch.randn(2, 9, D, generator=torch.Generator().manual_seed(1))
        decoder(x, torch.tensor([9, 6]), torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([3, 2]))[0].sum().backward()
        grads.append([parameter.grad for parameter in decoder.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


WRONG = [
    ({"self_attention_layer_type": "linear"}, "self_attention_layer_type: 'linear' must be one of mha, gqa, mla"),
    ({"src_attention_layer_type": "mtla"}, "src_attention_layer_type: 'mtla' must be one of mha, gqa, mla"),
    (
        {"self_attention_layer_type": "mtla", "self_attention_conf": {"down_rate": [2, 3]}},
        r"self_attention_conf: down_rate: \[2, 3\] must be one number for all layers",
    ),
    ({"src_attention_layer_type": "mlaa"}, "src_attention_layer_type: 'mlaa'"),
    (
        {"src_attention_layer_type": "gqa", "src_attention_conf": {"num_kv_heads": 3}},
        r"src_attention_conf: num_kv_heads \(3\) must divide",
    ),
    (
        {"self_attention_layer_type": "mla", "self_attention_conf": {"rank": 3}},
        "self_attention_conf: rank: 3 is not an option",
    ),
    ({"src_attention_layer_type": "mla", "src_attention_conf": 7}, "src_attention_conf: 7 must hold .*kv_lora_rank"),
    (
        {"self_attention_conf": {"kv_lora_rank": 3}},
        "self_attention_conf: .*: self_attention_layer_type: mha has no options",
    ),
    ({"self_attention_layer_type": "mla", "qk_norm": True}, "qk_norm: true belongs to ESPnet's own attention"),
]


@pytest.mark.parametrize(("conf", "message"), WRONG)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_valid(conf, message):
    with pytest.raises(ValueError, match=message):
        build(**conf)
