"""Every attention, with every position kind it takes, is what its definition says."""

import copy
import itertools
import statistics
import unittest.mock

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    MultiHeadedAttention,
    RelPositionMultiHeadedAttention,
)
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference, sinusoid

from espnet_mla.attention import (
    ATTENTIONS,
    Past,
    TokenTree,
    attention_options,
    build_attention,
    build_attentions,
    softmax,
)

PAIRS = [(kind, position) for kind, attention in ATTENTIONS.items() for position in attention.positions]


def marked(pairs):
    """The pairs as parameters; scaled_abs_pos, which is abs_pos for an attention, among the slow ones."""
    return [pytest.param(*pair, marks=pytest.mark.slow if pair[1] == "scaled_abs_pos" else ()) for pair in pairs]


SOFTMAX = [pair for pair in PAIRS if pair[0] != "linear"]
OPTIONS = {  # the first is what a test takes that does not care
    "mha": [{}],
    "gqa": [{"num_kv_heads": 1}, {"num_kv_heads": 2}],
    "mla": [
        {"kv_lora_rank": 3},
        {"kv_lora_rank": 6, "kv_norm": True},
        {"kv_lora_rank": 16, "q_lora_rank": 5, "v_head_dim": 3},
    ],
    "mtla": [
        {"kv_lora_rank": 3},
        {"kv_lora_rank": 6, "down_rate": 3, "kv_norm": True},
        {"kv_lora_rank": 16, "down_rate": 1, "q_lora_rank": 5, "v_head_dim": 3},
        {"kv_lora_rank": 5, "down_rate": 4},
    ],
    "linear": [{}],
}


def build(kind, position="abs_pos", conf=None, d_model=16, num_heads=4, dropout_rate=0.0, seed=0):
    torch.manual_seed(seed)
    attention = build_attention(
        kind,
        OPTIONS[kind][0] if conf is None else conf,
        d_model=d_model,
        num_heads=num_heads,
        position=position,
        dropout_rate=dropout_rate,
    )
    for parameter in attention.parameters():  # biases too: a wrong one must show
        torch.nn.init.normal_(parameter, std=0.4)
    return attention.eval()


def positions(attention, time_q, time_k):
    """The position argument for a window, as ESPnet makes it."""
    if attention.position != "rel_pos":
        return None
    rows = [sinusoid(distance, attention.d_model) for distance in range(time_k - 1, -time_q, -1)]
    return torch.stack(rows)[None].to(next(attention.parameters()).dtype)


def call(attention, x, mask):
    """ESPnet's call."""
    position = positions(attention, x.shape[1], x.shape[1])
    return attention(x, x, x, mask) if position is None else attention(x, x, x, position, mask)


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def padding_mask(lengths):
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None]


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_forward_equals_its_definition(kind, position, data):
    conf = data.draw(st.sampled_from(OPTIONS[kind]))
    num_heads = data.draw(st.sampled_from([2, 4]))
    d_model = num_heads * data.draw(st.sampled_from([4, 8, 12]))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    attention = build(kind, position, conf, d_model, num_heads, seed=data.draw(st.integers(0, 99)))
    for learning in (True, False):  # what needs gradients is computed in another way
        assert max(errors(attention, torch.randn(len(lengths), max(lengths), d_model), lengths, learning)) < 1e-5


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
@pytest.mark.parametrize("learning", [True, False])
def test_in_bfloat16_forward_errs_by_its_rounding(kind, position, learning):
    """In the middle of many networks: a single one may multiply the rounding of its weights."""
    found = []
    for seed, conf in itertools.product(range(5), OPTIONS[kind]):
        attention = build(kind, position, conf, d_model=24, num_heads=2, seed=seed).to(torch.bfloat16)
        found += errors(attention, torch.randn(2, 7, 24).to(torch.bfloat16), [7, 4], learning)
    assert statistics.median(found) < 1e-2


def errors(attention, x, lengths, learning):
    """Of every row, the error against the definition in float64."""
    exact = copy.deepcopy(attention).double()
    with torch.set_grad_enabled(learning):
        out = call(attention, x, padding_mask(lengths))
    assert out.dtype == x.dtype
    real = [(row[:length].double(), got[:length]) for row, got, length in zip(x, out, lengths, strict=True)]
    return [relative_error(got, reference(exact, row, row)) for row, got in real]


@pytest.mark.parametrize("frequencies", [[0, 3], [1, 1], [3, 2]])
def test_a_rotary_key_turns_by_the_frequencies_that_it_is_given(frequencies):
    conf = {"kv_lora_rank": 5, "qk_rope_head_dim": 4, "rope_frequencies": frequencies}
    attention, x = build("mla", "rope", conf, d_model=16, num_heads=2), torch.randn(1, 9, 16)
    assert (
        relative_error(call(attention, x, None)[0], reference(copy.deepcopy(attention).double(), *[x[0].double()] * 2))
        < 1e-5
    )
    past, new = attention.project_kv(x[:, :6]), attention.project_kv(x[:, 6:])
    stepwise = attention.attend(x[:, 6:], past.append(new), None, None)
    torch.testing.assert_close(stepwise, call(attention, x, None)[:, 6:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mha", "gqa", "mla"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_position_term_made_a_few_rows_at_a_time_is_the_same(kind, data):
    rows, time_q, past = (data.draw(st.integers(*bounds)) for bounds in ((1, 4), (1, 9), (0, 5)))
    attention = build(kind, "rel_pos")
    x, mask = torch.randn(2, past + time_q, 16), torch.rand(2, time_q, past + time_q) > 0.3
    outs = []
    for at_a_time in (rows, time_q):
        with unittest.mock.patch.object(softmax, "_rows_at_a_time", lambda *_, rows=at_a_time: rows):
            place = positions(attention, time_q, past + time_q)
            outs.append(attention.attend(x[:, past:], attention.project_kv(x), place, mask))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_compiling_breaks_no_graph_and_changes_no_output(kind, position):
    torch.compiler.reset()
    attention = build(kind, position)
    x, mask = torch.randn(2, 7, 16), padding_mask([7, 4])
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    real = mask[:, 0]
    torch.testing.assert_close(call(compiled, x, mask)[real], call(attention, x, mask)[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_gradients_equal_finite_differences(kind, position):
    attention = build(kind, position, OPTIONS[kind][-1]).double()
    x = torch.randn(2, 4, 16, dtype=torch.double, requires_grad=True)
    mask = padding_mask([4, 3])
    names, values = zip(*attention.named_parameters(), strict=True)

    def function(x, *values):
        arguments = (x, x, x) if attention.position != "rel_pos" else (x, x, x, positions(attention, 4, 4))
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (*arguments, mask))

    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_padding_and_company_never_change_a_real_frame(kind, position):
    attention = build(kind, position)
    lengths = [7, 1, 4]
    x = torch.randn(3, 9, 16)
    mask = torch.nn.functional.pad(padding_mask(lengths), (0, 2))
    out = call(attention, x, mask)
    order = [2, 0, 1]
    reordered = call(attention, x[order], mask[order])
    for row, length in enumerate(lengths):
        alone = call(attention, x[row : row + 1, :length], torch.ones(1, 1, length, dtype=torch.bool))
        torch.testing.assert_close(out[row, :length], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reordered[order.index(row), :length], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_what_stands_in_padding_is_never_seen(kind, position):
    attention = build(kind, position)
    mask = padding_mask([5, 8])
    x = torch.randn(2, 8, 16)
    other = x.clone()
    other[0, 5:] = 1e4
    assert torch.equal(call(attention, x, mask)[0, :5], call(attention, other, mask)[0, :5])


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_mask_may_hide_any_frame(kind, position, data):
    time = data.draw(st.integers(2, 9))
    attention = build(kind, position, data.draw(st.sampled_from(OPTIONS[kind]))).double()
    seen = data.draw(st.lists(st.booleans(), min_size=time, max_size=time).filter(any))
    x, mask = torch.randn(1, time, 16, dtype=torch.double), torch.tensor(seen)
    expected = reference(attention, x[0], x[0], mask.expand(time, -1))
    assert relative_error(call(attention, x, mask.view(1, 1, -1))[0, mask], expected[mask]) < 1e-5  # others are padding


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_step_by_step_equals_the_causal_definition(kind, position, cuts):
    """Pieces of any length, each attending to what came before it and to itself."""
    attention = build(kind, position).double()
    total = sum(cuts)
    x = torch.randn(1, total, 16, dtype=torch.double)
    kv, start = None, 0
    for cut in cuts:
        piece = x[:, start : start + cut]
        new = attention.project_kv(piece, start=start)
        kv = new if kv is None else kv.append(attention.project_kv(piece[:, :0], start=start)).append(new)
        start += cut
        out = attention.attend(piece, kv, positions(attention, cut, start), None)
        assert relative_error(out[0], reference(attention, piece[0], x[0, :start])) < 1e-5


@pytest.mark.parametrize(("kind", "position"), marked(SOFTMAX))
def test_a_causal_mask_equals_step_by_step(kind, position):
    attention = build(kind, position)
    x = torch.randn(2, 6, 16)
    at_once = call(attention, x, torch.ones(2, 6, 6).tril().bool())
    kv = attention.project_kv(x[:, :1])
    for t in range(6):
        kv = kv if t == 0 else kv.append(attention.project_kv(x[:, t : t + 1], start=t))
        step = attention.attend(x[:, t : t + 1], kv, positions(attention, 1, t + 1), None)
        torch.testing.assert_close(step, at_once[:, t : t + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_selecting_rows_of_a_cache_equals_selecting_utterances(kind, position):
    attention = build(kind, position)
    x, rows = torch.randn(3, 5, 16), torch.tensor([2, 0, 0])
    position_argument = positions(attention, 1, 5)
    picked = attention.attend(x[rows, 4:], attention.project_kv(x).select(rows), position_argument, None)
    made = attention.attend(x[rows, 4:], attention.project_kv(x[rows]), position_argument, None)
    torch.testing.assert_close(picked, made)


KEEPING = [(kind, position) for kind, position in SOFTMAX if "abs" in position]  # what a decoder can have


@pytest.mark.parametrize(("kind", "position"), marked(KEEPING))
@pytest.mark.parametrize("each", [1, 3, 6])
def test_hypotheses_share_what_is_kept_of_their_utterance(kind, position, each):
    """As many hypotheses as frames too: what the mask says of frames, it does not say of them."""
    attention = build(kind, position)
    x, lengths = torch.randn(2, 6, 16), [6, 4]
    query = torch.randn(2 * each, 1, 16)
    out = attention(query, *[attention.project_kv(x)] * 2, padding_mask(lengths))
    for row in range(len(query)):
        real = x[row // each, : lengths[row // each]]
        exact = reference(copy.deepcopy(attention).double(), query[row].double(), real.double())
        assert relative_error(out[row], exact) < 1e-5


@pytest.mark.parametrize(("kind", "position"), marked(KEEPING))
def test_queries_of_other_frames_are_answered_beyond_the_padding_of_the_keys(kind, position):
    attention = build(kind, position)
    query, x, mask = torch.randn(1, 6, 16), torch.randn(1, 6, 16), padding_mask([6])
    mask[..., 2:] = False
    exact = reference(copy.deepcopy(attention).double(), query[0].double(), x[0, :2].double())
    assert relative_error(attention(query, x, x, mask)[0], exact) < 1e-5


@pytest.mark.parametrize(("kind", "position"), marked(KEEPING))
def test_tokens_one_at_a_time_equal_a_causal_mask(kind, position):
    attention = build(kind, position)
    tree = TokenTree(stride=getattr(attention, "down_rate", 1))
    x, held = torch.randn(3, 5, 16), torch.zeros(3, 1, 0).bool()
    at_once = call(attention, x, torch.ones(3, 5, 5).tril().bool())
    for t in range(5):
        tree, held = tree.prepared(held, 1, t)
        held, parents = tree.seen(held)
        token = x[:, t : t + 1]
        stepwise = attention(token, token, token, Past(tree, 0, held, parents))
        torch.testing.assert_close(stepwise, at_once[:, t : t + 1], rtol=1e-4, atol=1e-5)
        tree.advance(1)
    assert tree.trimmed()[0].entries == -(-5 // getattr(attention, "down_rate", 1))


@pytest.mark.parametrize(("kind", "position"), marked(SOFTMAX))
def test_keeping_the_last_frames_equals_never_having_had_the_others(kind, position):
    attention = build(kind, position)
    x = torch.randn(2, 9, 16)
    position_argument = positions(attention, 2, 4)
    x = x[:, 1:] if kind == "mtla" else x  # it keeps whole groups
    kept = attention.attend(x[:, -2:], attention.project_kv(x).keep_last(4), position_argument, None)
    made = attention.attend(x[:, -2:], attention.project_kv(x[:, -4:], start=x.shape[1] - 4), position_argument, None)
    torch.testing.assert_close(kept, made)


def test_linear_keeps_its_state_whole_whatever_it_is_asked_to_keep():
    kv = build("linear", "rope").project_kv(torch.randn(1, 9, 16))
    assert kv.keep_last(2) is kv


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3))
@pytest.mark.parametrize("position", ["rel_pos", "abs_pos"])
def test_mha_equals_espnets_attention_with_its_parameters(position, lengths):
    espnet_class = {"rel_pos": RelPositionMultiHeadedAttention, "abs_pos": MultiHeadedAttention}[position]
    ours, theirs = build("mha", position), espnet_class(4, 16, 0.0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, mask = torch.randn(len(lengths), max(lengths), 16), padding_mask(lengths)
    place = [RelPositionalEncoding(16, 0.0)(x)[1]] if position == "rel_pos" else []
    out, expected = ours(x, x, x, *place, mask), theirs(x, x, x, *place, mask)
    torch.testing.assert_close(out[mask[:, 0]], expected[mask[:, 0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["rel_pos", "abs_pos", "rope"])
def test_gqa_with_all_heads_equals_mha(position):
    gqa, mha = build("gqa", position, {"num_kv_heads": 4}), build("mha", position, seed=1)
    mha.load_state_dict(gqa.state_dict())
    x, mask = torch.randn(2, 7, 16), padding_mask([7, 4])
    assert torch.equal(call(gqa, x, mask), call(mha, x, mask))


@pytest.mark.parametrize("position", ["rel_pos", "abs_pos", "rope"])
@settings(max_examples=15, deadline=None)
@given(rank=st.integers(1, 32), time_q=st.integers(1, 5), past=st.integers(0, 9))
def test_mla_expanded_equals_mla_absorbed(position, rank, time_q, past):
    attention = build("mla", position, {"kv_lora_rank": rank})
    x = torch.randn(2, past + time_q, 16)
    outs = []
    for absorb in (True, False):
        attention.absorbing_is_cheaper = lambda time_q, time_k, absorb=absorb: absorb
        place = positions(attention, time_q, past + time_q)
        outs.append(attention.attend(x[:, past:], attention.project_kv(x), place, None))
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)


def test_mla_absorbs_for_one_query_against_a_long_cache_and_expands_for_many():
    attention = build("mla", "rel_pos", {"kv_lora_rank": 64}, d_model=256)
    assert attention.absorbing_is_cheaper(1, 500)
    assert not build("mla", "rel_pos", {"kv_lora_rank": 256}, d_model=256).absorbing_is_cheaper(500, 500)


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_a_row_that_may_look_nowhere_is_finite_and_has_finite_gradients(kind, position):
    attention = build(kind, position)
    x = torch.randn(2, 6, 16, requires_grad=True)
    mask = padding_mask([6, 1])
    mask[1] = False
    out = call(attention, x, mask)
    out.sum().backward()
    torch.testing.assert_close(out[1], attention.linear_out.bias.expand(6, -1))
    assert x.grad.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in attention.parameters())


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
@pytest.mark.parametrize(
    ("dtype", "time"),
    [
        (torch.bfloat16, 50),  # the type with the fewest digits
        (torch.float16, 3000),  # the type with the smallest range, and long sums
        pytest.param(torch.bfloat16, 3000, marks=pytest.mark.slow),
        pytest.param(torch.float16, 50, marks=pytest.mark.slow),
    ],
)
def test_autocast_stays_finite(kind, position, dtype, time):
    attention = build(kind, position, d_model=16)
    x = torch.randn(2, time, 16)
    mask = padding_mask([time, time])
    mask[1] = False
    position_argument = None
    if position == "rel_pos":
        position_argument = RelPositionalEncoding(16, 0.0)(x)[1]
    arguments = (x, x, x, mask) if position_argument is None else (x, x, x, position_argument, mask)
    with torch.autocast("cpu", dtype), torch.no_grad():
        out = attention(*arguments)
    assert out.isfinite().all()
    with torch.no_grad():
        exact = attention(*arguments)
    assert relative_error(out[0], exact[0]) < 0.03


NUMBERS = {  # contract 1's table, for d_model 256 and 4 heads
    ("mha", "rel_pos"): 512,
    ("mha", "rope"): 512,
    ("gqa", "rel_pos"): 128,
    ("mla", "rel_pos"): 64,
    ("mla", "rope"): 64 + 32,
    ("mtla", "rel_pos"): 32,
    ("mtla", "rope"): (64 + 32) / 2,
    ("linear", "rope"): 0,
}


@pytest.mark.parametrize(("kind", "position"), NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_frame_are_what_the_tensors_hold(kind, position, dtype):
    attention = build(kind, position, {}, d_model=256).to(dtype)
    kv = attention.project_kv(torch.randn(3, 10, 256, dtype=dtype))
    assert len(kv) == 10
    assert kv.nbytes_per_frame == NUMBERS[kind, position] * dtype.itemsize
    if kind == "linear":
        assert kv.nbytes == 3 * 4 * (64 + 1) * 64 * 4  # kept in float32
        assert kv.append(kv).nbytes == kv.nbytes
    else:
        assert kv.nbytes == 3 * 10 * kv.nbytes_per_frame
        assert kv.keep_last(4).nbytes == 3 * 4 * kv.nbytes_per_frame
        assert kv.keep_last(4).tensors[0].untyped_storage().nbytes() < kv.tensors[0].untyped_storage().nbytes()


@pytest.mark.parametrize(("kind", "position"), marked(PAIRS))
def test_dropout_acts_in_training_alone(kind, position):
    attention = build(kind, position, dropout_rate=0.5)
    x, mask = torch.randn(1, 8, 16), padding_mask([8])
    assert torch.equal(call(attention, x, mask), call(attention, x, mask))
    attention.train()
    assert not torch.equal(call(attention, x, mask), call(attention, x, mask))


WRONG = [
    ("mlaa", {}, {}, "unknown attention 'mlaa': it must be one of mha, gqa, mla, mtla, linear"),
    ("mtla", {"down_rate": None}, {}, "down_rate: None must be a whole number"),
    ("mtla", {"down_rate": 0}, {}, r"down_rate \(0\) must be at least 1"),
    ("mtla", {"kv_lora_rank": 0}, {}, r"kv_lora_rank \(0\) must be at least 1"),
    ("mtla", {"rank": 8}, {}, "rank: 8 is not an option of mtla; its options: down_rate, kv_lora_rank"),
    ("gqa", {"num_kv_heads": 3}, {}, r"num_kv_heads \(3\) must divide attention_heads \(4\)"),
    ("gqa", {"num_kv_heads": 0}, {}, r"num_kv_heads \(0\) must divide attention_heads \(4\)"),
    ("mha", {}, {"num_heads": 3}, r"attention_heads \(3\) must divide output_size \(16\)"),
    ("mha", {"num_kv_heads": 1}, {}, "num_kv_heads: 1 is not an option of mha; its options: none at all"),
    ("mla", {"rank": 8}, {}, "rank: 8 is not an option of mla; its options: kv_lora_rank"),
    ("mla", {"kv_lora_rank": 0}, {}, r"kv_lora_rank \(0\) must be at least 1"),
    ("mla", {"kv_lora_rank": 33}, {}, r"kv_lora_rank \(33\) is more than"),
    ("mla", {"kv_lora_rank": "many"}, {}, "kv_lora_rank: 'many' must be a whole number"),
    ("mla", {"kv_norm": 1}, {}, "kv_norm: 1 must be true or false"),
    ("mla", {"qk_rope_head_dim": 2}, {}, r"qk_rope_head_dim \(2\) needs pos_enc_layer_type: rope"),
    ("mla", {"kv_lora_rank": 8, "qk_rope_head_dim": 3}, {"position": "rope"}, r"qk_rope_head_dim \(3\) must be even"),
    (
        "mla",
        {"kv_lora_rank": 8, "rope_frequencies": [0]},
        {},
        r"rope_frequencies \(\[0\]\) must have one number for each pair of qk_rope_head_dim \(0\)",
    ),
    (
        "mla",
        {"kv_lora_rank": 8, "qk_rope_head_dim": 2, "rope_frequencies": [2]},
        {"position": "rope"},
        "rope_frequencies: 2 must be from 0 to 1",
    ),
    (
        "mla",
        {"kv_lora_rank": 8, "qk_rope_head_dim": 2, "rope_frequencies": 1},
        {"position": "rope"},
        "rope_frequencies: 1 must be a list of whole numbers",
    ),
    ("linear", {}, {"position": "rel_pos"}, "rel_pos, but linear takes rope or abs_pos or scaled_abs_pos"),
    ("mha", {}, {"position": "rope", "num_heads": 16}, "rope needs an even head size"),
]


@pytest.mark.parametrize(("kind", "conf", "sizes", "message"), WRONG)
def test_a_wrong_size_is_refused_with_the_key_and_both_values(kind, conf, sizes, message):
    with pytest.raises(ValueError, match=message):
        build_attention(
            kind, conf, **{"d_model": 16, "num_heads": 4, "position": "abs_pos", "dropout_rate": 0.0} | sizes
        )


SHARED = {"d_model": 16, "num_heads": 4, "position": "abs_pos", "dropout_rate": 0.0}


def test_a_list_has_an_option_for_each_layer():
    layers = build_attentions("mla", {"kv_lora_rank": [3, 5], "kv_norm": True}, 2, **SHARED)
    assert [layer.kv_lora_rank for layer in layers] == [3, 5]
    assert [layer.kv_norm.weight.shape for layer in layers] == [(3,), (5,)]


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"kv_lora_rank": [3]}, r"attention_conf: kv_lora_rank: \[3\] has 1 values, but there are 2 layers"),
        ({"kv_lora_rank": [3, 0]}, r"attention_conf: kv_lora_rank \(0\) must be at least 1"),
        ({"kv_lora_rank": [3, "x"]}, "attention_conf: kv_lora_rank: 'x' must be a whole number"),
        ({"rank": [3, 4]}, "attention_conf: rank: 3 is not an option of mla"),
        (7, "attention_conf: 7 must hold"),
    ],
)
def test_a_list_that_fits_no_model_is_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        build_attentions("mla", conf, 2, **SHARED)


def test_keys_and_values_of_different_frames_are_refused():
    x = torch.randn(1, 3, 16)
    with pytest.raises(ValueError, match="value must be key"):
        build("mla", "abs_pos")(x, x, x.clone(), None)


def test_linear_refuses_a_mask_that_differs_between_queries():
    x = torch.randn(1, 3, 16)
    with pytest.raises(ValueError, match=r"its mask is \(batch, 1, time\), not \(1, 3, 3\)"):
        build("linear", "rope")(x, x, x, torch.ones(1, 3, 3))


def test_options_are_listed_with_their_defaults():
    assert attention_options("gqa") == {"num_kv_heads": 1}
    assert attention_options("mla")["kv_lora_rank"] == 64
    assert all(not attention_options(kind) for kind in ("mha", "linear"))


def test_the_running_state_of_a_long_stream_weighs_old_frames_as_the_definition_does():
    """Ten minutes in pieces of 100 frames: only differences of positions may matter, not how far they have run."""
    attention = build("linear", "rope")
    pieces = torch.randn(150, 1, 100, 16)
    kv = attention.project_kv(pieces[0])
    for piece in pieces[1:]:
        kv = kv.append(attention.project_kv(piece))
    at_once = attention.project_kv(pieces.view(1, -1, 16))
    assert len(kv) == len(at_once) == 15000
    torch.testing.assert_close(
        kv.numerator, at_once.numerator, rtol=1e-3, atol=1e-3 * at_once.numerator.abs().max().item()
    )
    torch.testing.assert_close(kv.denominator, at_once.denominator, rtol=1e-4, atol=0)
