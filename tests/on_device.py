"""What a device computes is what the CPU computes: attentions, training, decoding, streams, for every choice.

    python -m pytest tests/on_device.py --device cuda
    python -m pytest tests/on_device.py --device simulated  # a GPU's rules without one: see simulated.py

The reference is the CPU in float32, or in float64 for one attention. A half precision has the tolerance that its
numbers have; what matters more there is that everything stays finite, masked and misaligned as real batches are.
"""

import contextlib
import copy
import json

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding
from espnet2.legacy.nets.scorers.length_bonus import LengthBonus
from experiment import add_variant, heard, samples
from experiment import build as build_experiment

import espnet_mla
from espnet_mla.attention import ATTENTIONS, Chunks, build_attention
from espnet_mla.attention.tree import ROOM
from espnet_mla.models.ctc import PrefixScorer
from espnet_mla.models.decoder import CHOICES, TransformerDecoder
from espnet_mla.models.encoders import ENCODERS

D, HEADS, VOCABULARY = 128, 2, 50  # heads of 64, as the kernels of a GPU like them
OPTIONS = {"gqa": {"num_kv_heads": 1}, "mla": {"kv_lora_rank": 32}, "mtla": {"kv_lora_rank": 32}}
ATTENTION = [(kind, position) for kind, attention in ATTENTIONS.items() for position in attention.positions]
ENCODER = [
    (name, kind, position) for name, encoder in ENCODERS.items() for kind, position in ATTENTION
    if position in encoder.position_kinds
]  # fmt: skip
SIZES = {
    "conformer": {"linear_units": 64, "macaron_style": True, "cnn_module_kernel": 7},
    "branchformer": {"cgmlp_linear_units": 64, "cgmlp_conv_kernel": 7},
    "e_branchformer": {"linear_units": 64, "cgmlp_linear_units": 64, "cgmlp_conv_kernel": 7, "use_ffn": True},
    "transformer": {"linear_units": 64},
}
STEPS = 12.0  # of a beam search
WINDOWS = [(37, 37), (64, 64), (131, 131), (8, 18), (10, 170), (1, 33)]  # 8 and 18: rows that begin off 16 bytes
HALF = [torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def exact_convolutions():
    """cuDNN's convolutions may round to 10 bits of mantissa."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def log(device):
    """What a simulated device was asked; None of a real one."""
    if device.type != "simulated":
        yield None
        return
    import simulated

    with simulated.device() as log:
        yield log
    slow = [given for given in log.ours(log.kernels) if given[0] == "math" and given[2]]
    assert not slow, "training attends by the slowest kernel"


def autocast(device, dtype):
    return torch.autocast(device.type, dtype) if dtype in HALF else contextlib.nullcontext()


def error(found, expected):
    found, expected = found.detach().cpu().double(), expected.detach().double()
    assert torch.isfinite(found).all()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def attention(kind, position, dropout_rate=0.0):
    torch.manual_seed(0)
    conf = OPTIONS.get(kind, {})
    return build_attention(kind, conf, d_model=D, num_heads=HEADS, position=position, dropout_rate=dropout_rate)


def sinusoids(x, time_q, time_k):
    encoding = RelPositionalEncoding(x.shape[-1], 0.0)(x.new_zeros(1, time_k, x.shape[-1]))[1]
    return encoding[:, : time_q + time_k - 1]  # from t_k - 1 down to 1 - t_q


def outputs(module, x, time_q, mask):
    """Of the last queries: the output, and the gradients of a number made of it, of the input and all parameters."""
    x = x.clone().requires_grad_()
    position = sinusoids(x, time_q, x.shape[1]) if module.position == "rel_pos" else None
    out = module.attend(x[:, -time_q:], module.project_kv(x, mask), position, mask)
    (out.float() * torch.linspace(-1, 1, out.numel(), device=x.device).view_as(out)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return out, gradients | {"x": x.grad}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("time_q", "time_k"), WINDOWS)
@pytest.mark.parametrize(("kind", "position"), ATTENTION)
def test_an_attention_and_its_gradients_are_the_cpus(device, kind, position, time_q, time_k, padded, dtype):
    module = attention(kind, position)
    x = torch.randn(3, time_k, D)
    mask = torch.arange(time_k) < torch.tensor([time_k, time_k, max(time_k // 2, 1)])[:, None] if padded else None
    mask = None if mask is None else mask[:, None]
    expected, slopes = outputs(copy.deepcopy(module).double(), x.double(), time_q, mask)
    with autocast(device, dtype):
        found, gradients = outputs(
            copy.deepcopy(module).to(device), x.to(device), time_q, None if mask is None else mask.to(device)
        )
    assert error(found, expected) < TOLERANCE[dtype]
    scale = max(slope.norm().item() for slope in slopes.values())
    for name, slope in slopes.items():
        wrong = (gradients[name].cpu().double() - slope).norm().item()
        assert wrong < 2 * TOLERANCE[dtype] * scale, name


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("time_q", "time_k"), WINDOWS)
@pytest.mark.parametrize(("kind", "position"), [pair for pair in ATTENTION if pair[0] != "linear"])
def test_each_attention_is_given_the_fastest_kernel_there_is(device, log, kind, position, time_q, time_k, padded):
    """Flash takes no mask, and the position term of rel_pos is one; no mask needs another copy."""
    if log is None:
        pytest.skip("a real device does not tell")
    module, x = attention(kind, position).to(device), torch.randn(2, time_k, D).to(device)
    mask = torch.ones(2, 1, time_k, dtype=torch.bool).to(device) if padded else None
    with autocast(device, torch.bfloat16):
        outputs(module, x, time_q, mask)
    (given,) = log.ours(log.kernels)
    assert given[0] == ("efficient" if padded or position == "rel_pos" else "flash")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("left", [0, 1, -1])
@pytest.mark.parametrize(("kind", "position"), ATTENTION)
def test_chunks_with_bounded_left_context_are_the_cpus_and_padding_stays_finite(device, kind, position, left, dtype):
    if kind == "linear" and left >= 0:
        pytest.skip("its sum has no bound")
    module, x = attention(kind, position), torch.randn(3, 50, D)
    mask = (torch.arange(50) < torch.tensor([50, 30, 3])[:, None])[:, None]

    def run(module, x, mask):
        x = x.clone().requires_grad_()
        at = sinusoids(x, 50, 50) if position == "rel_pos" else None
        out = module.attend_in_chunks(x, at, mask, Chunks(8, left))
        out = out * mask.transpose(1, 2)
        out.float().square().sum().backward()
        return out, x.grad

    expected, slope = run(copy.deepcopy(module).double(), x.double(), mask)
    with autocast(device, dtype):
        found, gradient = run(module.to(device), x.to(device), mask.to(device))
    assert error(found, expected) < TOLERANCE[dtype]
    assert error(gradient, slope) < 3 * TOLERANCE[dtype]


def encoder(name, kind, position, dropout_rate=0.0, **conf):
    conf |= {
        ENCODERS[name].attention_key: kind,
        "pos_enc_layer_type": position,
        "attention_conf": OPTIONS.get(kind, {}),
    }
    rates = dict.fromkeys(("dropout_rate", "positional_dropout_rate", "attention_dropout_rate"), dropout_rate)
    sizes = {"output_size": D, "attention_heads": HEADS, "num_blocks": 2, **SIZES[name], **rates}
    return ENCODERS[name](80, **sizes, **conf)


def decoder(kind="mha"):
    conf = {}
    for part in (part for part in CHOICES if kind in CHOICES[part]):
        conf |= {f"{part}_attention_layer_type": kind, f"{part}_attention_conf": OPTIONS.get(kind, {})}
    rates = ("dropout_rate", "positional_dropout_rate", "self_attention_dropout_rate", "src_attention_dropout_rate")
    return TransformerDecoder(
        VOCABULARY, D, attention_heads=HEADS, num_blocks=2, linear_units=64, **conf, **dict.fromkeys(rates, 0.0)
    )


def asr_model(name, kind, position, dropout_rate=0.0, **conf):
    """ESPnet's model, from samples on."""
    torch.manual_seed(0)
    tokens = ["<blank>", "<unk>", *(f"t{number}" for number in range(VOCABULARY - 3)), "<sos/eos>"]
    parts = dict.fromkeys(("specaug", "normalize", "preencoder", "postencoder", "joint_network"))
    return ESPnetASRModel(
        VOCABULARY, tokens, frontend=DefaultFrontend(fs=16000, hop_length=160),
        encoder=encoder(name, kind, position, dropout_rate, **conf), decoder=decoder("mha" if kind == "linear" else kind),
        ctc=CTC(VOCABULARY, D), ctc_weight=0.3, lsm_weight=0.1, report_cer=False, report_wer=False, **parts,
    )  # fmt: skip


def batch(device=None):
    """Three utterances of samples and of tokens, padded."""
    torch.manual_seed(1)
    lengths, tokens = torch.tensor([24000, 17000, 9000]), torch.tensor([9, 6, 3])
    speech = 0.1 * torch.randn(3, 24000) * (torch.arange(24000) < lengths[:, None])
    text = torch.randint(2, VOCABULARY - 1, (3, 9)).masked_fill(torch.arange(9) >= tokens[:, None], -1)
    return {key: value.to(device) for key, value in {
        "speech": speech, "speech_lengths": lengths, "text": text, "text_lengths": tokens}.items()}  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "position"), ENCODER)
def test_a_training_step_is_the_cpus(device, log, name, kind, position):
    here = asr_model(name, kind, position).train()
    there = copy.deepcopy(here).to(device)
    for model, given in ((here, batch()), (there, batch(device))):
        model(**given)[0].backward()
    if log is not None:
        assert not log.ours(log.waits)
    assert abs(here(**batch())[0].item() - there(**batch(device))[0].item()) < 1e-4 * here(**batch())[0].item()
    for (parameter, expected), found in zip(here.named_parameters(), there.parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), parameter
        if expected.grad is not None and expected.grad.norm() > 1e-4:
            assert error(found.grad, expected.grad) < 1e-2, parameter


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("name", "kind", "position"), ENCODER)
def test_steps_in_half_precision_with_dropout_stay_finite_and_learn(device, name, kind, position, dtype):
    model = asr_model(name, kind, position, dropout_rate=0.1).train().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16, init_scale=256.0)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        with autocast(device, dtype):
            loss = model(**batch(device))[0]
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "kind", "position"),
    [case for case in ENCODER if ENCODERS[case[0]].can_stream and case[2] in ("rel_pos", "rope")],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ahead", [0, 6])
def test_a_streamed_encoder_gives_the_cpus_frames(device, log, name, kind, position, dtype, ahead):
    if ahead and kind not in ("mha", "gqa", "mla"):
        pytest.skip("it can't look ahead")
    torch.manual_seed(0)
    left = -1 if kind == "linear" else 2
    streaming = {"chunk_size": 10, "left_chunks": left, "look_ahead": ahead}
    module = encoder(name, kind, position, streaming=streaming).eval()
    features = torch.randn(2, 330, 80)

    def run(module, features):
        state, outs = module.stream(rows=2), []
        with torch.inference_mode():
            for begin in range(0, 330, 70):
                last = begin + 70 >= 330
                out, lengths = module.forward_chunk(features[:, begin : begin + 70], state, last=last)
                while max(lengths):
                    outs.append(out)
                    out, lengths = module.encode_chunk(state)
        return torch.cat(outs, dim=1)

    expected = run(copy.deepcopy(module), features)
    with autocast(device, dtype):
        found = run(module.to(device), features.to(device))
    if log is not None:
        assert not [given for given in log.waits if given[1] != "a test"]  # Python knows all lengths
    assert error(found, expected) < 3 * TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["conformer", "branchformer"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_chunks_with_look_ahead_and_their_gradients_are_the_cpus(device, name, dtype):
    torch.manual_seed(0)
    module = encoder(name, "mla", "rel_pos", streaming={"chunk_size": 5, "left_chunks": 2, "look_ahead": 3})
    features, lengths = torch.randn(2, 150, 80), torch.tensor([150, 90])

    def run(module, features):
        out, lengths_, _ = module(features, lengths)
        mask = torch.arange(out.shape[1], device=out.device) < lengths_[:, None]
        (out * mask[..., None]).float().square().mean().backward()
        return out[mask], torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    expected, slope = run(copy.deepcopy(module).double(), features.double())
    with autocast(device, dtype):
        found, gradient = run(module.to(device), features.to(device))
    assert error(found, expected) < 3 * TOLERANCE[dtype]
    assert error(gradient, slope) < 10 * TOLERANCE[dtype]


def search(kind, device):
    torch.manual_seed(0)
    ctc, model = CTC(VOCABULARY, D).eval(), decoder(kind).eval()
    for parameter in ctc.ctc_lo.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    scorers = {
        "decoder": model,
        "ctc": PrefixScorer(ctc, VOCABULARY - 1, window_margin=100),
        "length_bonus": LengthBonus(VOCABULARY),
    }
    weights = {"decoder": 0.7, "ctc": 0.3, "length_bonus": 0.0}
    ctc.to(device)  # its scorer is no module, which a search would move
    beam = BatchBeamSearch(scorers, weights, 5, VOCABULARY, VOCABULARY - 1, VOCABULARY - 1, pre_beam_score_key="full")
    return beam.to(device).eval()


@pytest.mark.parametrize("kind", CHOICES["self"])
@pytest.mark.parametrize("utterances", [1, 3])
def test_a_beam_search_finds_the_cpus_hypotheses(device, log, kind, utterances):
    x = torch.randn(utterances, 60, D)
    lengths = torch.tensor([60, 45, 30][:utterances])

    def run(device):
        given = (x[0].to(device),) if utterances == 1 else (x.to(device),)
        more = {} if utterances == 1 else {"x_lengths": lengths.to(device)}
        with torch.no_grad():
            found = search(kind, device)(*given, maxlenratio=-STEPS, **more)
        return [found] if utterances == 1 else found

    hypotheses = run(device)
    if log is not None:  # one of the window of CTC, the trees', and one to see that a batch is the one projected
        assert sum(log.ours(log.waits).values()) <= STEPS + STEPS // ROOM + (utterances > 1)
    for found, expected in zip(hypotheses, run(torch.device("cpu")), strict=True):
        assert [one.yseq.tolist() for one in found[:3]] == [one.yseq.tolist() for one in expected[:3]]
        assert [float(one.score) for one in found[:3]] == pytest.approx(
            [float(one.score) for one in expected[:3]], rel=1e-4
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe's folder with trained models: exp/asr_tiny, exp/asr_streaming and exp/asr_mha."""
    folder = tmp_path_factory.mktemp("device")
    build_experiment(folder)
    with contextlib.chdir(folder):
        add_variant("streaming", streaming={"chunk_size": 4, "left_chunks": 2})
        add_variant("mha", attention_layer_type="mha", attention_conf={})
    return folder


def loaded(folder, tag, device, **options):
    simulated = torch.device(device).type == "simulated"  # which is no device for a user
    speech2text = espnet_mla.from_pretrained(
        folder / f"exp/asr_{tag}", device="cpu" if simulated else str(device), beam_size=3, maxlenratio=0.2, **options
    )
    if simulated:
        for part in (speech2text.asr_model, speech2text.beam_search):
            part.to(device)
        speech2text.device = str(device)
    return speech2text


def test_a_recording_is_transcribed_as_on_the_cpu(device, trained):
    found, expected = (heard(loaded(trained, "tiny", where), samples(trained)) for where in (device, "cpu"))
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_recording_is_transcribed_in_half_precision(device, trained, dtype):
    assert heard(loaded(trained, "tiny", device, dtype=dtype), samples(trained))


def test_streams_give_the_cpus_text(device, trained):
    def text(where):
        recogniser = espnet_mla.StreamingSpeech2Text(loaded(trained, "streaming", where))
        speech = samples(trained)
        for begin in range(0, len(speech), 3000):
            recogniser.accept(speech[begin : begin + 3000])
        return recogniser.finish().text

    assert text(device) == text("cpu")


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_a_conversion_measures_what_it_measures_on_the_cpu(device, trained, monkeypatch, attention):
    from espnet_mla.convert.model import convert
    from espnet_mla.convert.spec import ConversionSpec
    from espnet_mla.trained.model import find

    monkeypatch.chdir(trained)
    (trained / "wav.scp").write_text(f"a {trained / 'speech.flac'}\n")
    (trained / "text").write_text("a THE CAT SAT\n")
    source = find(None, "exp/asr_mha/valid.acc.ave.pth", None)
    sizes, method = {"mla": ([8], "attention"), "gqa": ([1], "aligned")}[attention]
    spec = ConversionSpec(attention, method, ("encoder", "decoder_src"), sizes, None, trained / "wav.scp", 1)
    here, there = (convert(source, spec, where) for where in ("cpu", str(device)))
    for found, expected in zip(there.record["layers"], here.record["layers"], strict=True):
        assert found["name"] == expected["name"]
        for figure in ("energy_kept", "relative_error"):
            assert found[figure] == pytest.approx(expected[figure], rel=1e-3)
    assert {value.device.type for value in there.model.state_dict().values()} == {"cpu"}


def test_a_model_is_profiled_on_the_device(device, log, trained, monkeypatch):
    if log is not None:
        pytest.skip("figures of a simulated device mean nothing")
    from espnet_mla import cli

    monkeypatch.chdir(trained)
    (trained / "wav.scp").write_text(f"a {trained / 'speech.flac'}\n")
    model = "exp/asr_tiny/valid.acc.ave.pth"
    options = ["--wav_scp", "wav.scp", "--device", str(device), "--seconds", "5", "--maxlenratio", "0.2"]
    assert not cli.main(["profile", "--asr_model_file", model, *options, "--beam_size", "2"])
    figures = json.loads((trained / "exp/asr_tiny/figures.json").read_text())
    assert figures["encoder"]["5"]["seconds"] > 0
