"""Options of decoding are checked against their ranges and the model, on every way in, before anything is decoded."""

import inspect

import pytest
import soundfile
import yaml

import espnet_mla
from espnet_mla import cli
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.recipe import stages
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse
from espnet_mla.streaming.search import MAX_BEAM_SIZE
from espnet_mla.trained.decoding import NUMBERS, check, check_for, parse_arguments, read_options
from espnet_mla.trained.tasks import ASR

NAN, INF = float("nan"), float("inf")
TOKENS = 30  # of the model of `experiment`


def test_every_number_among_espnets_options_has_its_range():
    """An option that ESPnet gains shows here."""
    from espnet2.bin.asr_inference import Speech2Text, get_parser

    for name, parameter in inspect.signature(Speech2Text).parameters.items():
        if parameter.annotation in (int, float):
            assert NUMBERS[name].kind is parameter.annotation, name
    names = {action.dest for action in get_parser()._actions if action.type in (int, float)}
    assert names <= NUMBERS.keys(), names - NUMBERS.keys()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, "3", True, [1]])
def test_no_number_can_be_anything_else(name, value):
    with pytest.raises(UsageError, match=f"{name}: .*number"):
        check({name: value})


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("beam_size", [0, -1, 3.0], [1, 20]),
        ("nbest", [0], [1]),
        ("ctc_weight", [-0.1, 1.1, 7], [0, 0.3, 1]),
        ("penalty", [], [-1.5, 0, 2]),
        ("maxlenratio", [-0.5], [0, 0.3, -1, -40]),
        ("minlenratio", [-0.01], [0, 0.1, -3]),
        ("max_mask_parallel", [0, -2], [-1, 1]),
    ],
)
def test_ranges_are_as_espnet_means_them(name, wrong, right):
    for value in wrong:
        with pytest.raises(UsageError, match=f"{name}: {value}"):
            check({name: value})
    for value in [*right, None]:
        check({name: value})


def test_a_least_length_above_the_most_is_refused():
    with pytest.raises(UsageError, match="minlenratio: 0.5: it is more than maxlenratio, 0.2"):
        check({"minlenratio": 0.5, "maxlenratio": 0.2})
    check({"minlenratio": 0.5, "maxlenratio": -3})  # of a frame, and of an utterance: nothing to compare
    check({"minlenratio": 0.5})


def test_a_beam_has_at_most_one_hypothesis_fewer_than_there_are_tokens():
    config = {"token_list": ["a"] * 25}
    check_for(ASR, config, {"beam_size": 24})
    with pytest.raises(UsageError, match="beam_size: 25: the model has 25 tokens: at most 24"):
        check_for(ASR, config, {"beam_size": 25})


def test_espnets_default_beam_is_checked_too():
    with pytest.raises(UsageError, match="beam_size: 20: the model has 12 tokens"):
        check_for(ASR, {"token_list": ["a"] * 12}, {"beam_size": None})


@pytest.mark.parametrize(("trained", "given", "message"), [(0, 0.3, "has no CTC"), (1, 0, "has no decoder")])
def test_weights_need_something_to_weigh(trained, given, message):
    with pytest.raises(UsageError, match=f"ctc_weight: {given}: the model {message}"):
        check_for(ASR, {"model_conf": {"ctc_weight": trained}}, {"ctc_weight": given})


def test_a_search_that_takes_no_batch_is_named():
    with pytest.raises(UsageError, match="batch_size: 8: ESPnet decodes decoder: transducer by 1 at a time"):
        check_for(ASR, {"decoder": "transducer"}, {"batch_size": 8})
    check_for(ASR, {"decoder": "transducer"}, {"batch_size": 1})
    check_for(ASR, {"decoder": "transformer"}, {"batch_size": 8})


@pytest.mark.parametrize(
    ("written", "value"), [("5e-1", 0.5), ("0.5", 0.5), ("1", 1), ("'0.5'", 0.5), ("-3", -3), ("2E-1", 0.2)]
)
def test_a_number_of_a_configuration_is_one_however_it_is_written(written, value, tmp_path):
    path = tmp_path / "decode.yaml"
    path.write_text(f"maxlenratio: {written}\n")
    assert read_options(path) == {"maxlenratio": value}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("maxlenratio:", "maxlenratio has no value; without the key it is 0.0"),
        ("maxlenratio: .nan", "maxlenratio: nan: a finite number from 0, or of at most -1"),
        ("maxlenratio: long", "maxlenratio: 'long': a finite number"),
        ("beam_size: 3.0", "beam_size: 3.0: a whole number of at least 1 is needed"),
        ("beam_size: 0", "beam_size: 0: a whole number of at least 1 is needed"),
        ("ctc_weight: 7", "ctc_weight: 7: a finite number from 0 to 1 is needed"),
        ("bean_size: 3", "bean_size is no option of ESPnet's asr_inference; closest: beam_size"),
        ("beam_size: 3\nbeam_size: 4", "beam_size"),
    ],
)
def test_what_is_no_value_of_an_option_is_refused_with_file_and_key(line, message, tmp_path):
    path = tmp_path / "decode.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as refused:
        read_options(path)
    assert str(path) in str(refused.value) and message in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--beam_size 0", "--inference_args: --beam_size 0: a whole number of at least 1"),
        ("--beam_size x", "--inference_args: argument --beam_size: invalid int value: 'x'"),
        ("--beam_size", "--inference_args: argument --beam_size: expected one argument"),
        ("--penalty nan", "--inference_args: --penalty nan: a finite number"),
        ("--bean_size 3", "--bean_size is no option of ESPnet's asr_inference; closest: --beam_size"),
        ("--config x.yaml", "argument --config: x.yaml: the configuration has an option of its own"),
    ],
)
def test_arguments_are_read_by_espnets_parser(arguments, message):
    with pytest.raises(UsageError) as refused:
        parse_arguments(arguments.split(), "--inference_args")
    assert message in str(refused.value)


def test_arguments_that_are_not_given_are_left_out():
    assert parse_arguments(["--beam_size", "3", "--penalty=-0.5"], "x") == {"beam_size": 3, "penalty": -0.5}


WRONG = [
    (("--beam_size", "0"), "--beam_size 0: a whole number of at least 1 is needed"),
    (("--ctc_weight", "7"), "--ctc_weight 7.0: a finite number from 0 to 1 is needed"),
    (("--penalty", "nan"), "--penalty nan: a finite number is needed"),
    (("--maxlenratio", "inf"), "--maxlenratio inf: a finite number"),
    (("--maxlenratio", "nan"), "--maxlenratio nan: a finite number"),
    (("--maxlenratio", "-0.5"), "--maxlenratio -0.5: a finite number"),
    (("--minlenratio", "nan"), "--minlenratio nan: a finite number"),
]


@pytest.mark.parametrize("command", ["transcribe", "profile"])
@pytest.mark.parametrize(("option", "message"), WRONG)
def test_a_command_refuses_it_before_anything_is_loaded(command, option, message, capsys):
    given = ["no_model", "no.wav"] if command == "transcribe" else ["--asr_model_file", "no_model.pth"]
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *given, *option])
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        *[(option, message) for option, message in WRONG if option[0] in ("--beam_size", "--ctc_weight")],
        (("--beam_size", "100000"), f"beam_size: 100000: at most {MAX_BEAM_SIZE} hypotheses can be followed"),
    ],
)
def test_stream_refuses_it_before_anything_is_loaded(option, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["stream", "no_model", "no.wav", *option])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_beam_of_all_tokens_is_refused_on_every_way_in(recipe, tmp_path, capsys, monkeypatch):
    """Without the check every text is empty, and the exit status 0."""
    monkeypatch.chdir(recipe)
    model, message = "exp/asr_tiny", f"the model has {TOKENS} tokens: at most {TOKENS - 1} is possible"
    (tmp_path / "wav.scp").write_text(f"a {recipe / 'speech.flac'}\n")
    transcribe = ["transcribe", model, "speech.flac"]
    profile = ["profile", "--asr_model_file", f"{model}/valid.acc.ave.pth", "--wav_scp", str(tmp_path / "wav.scp")]
    for command in (transcribe, profile):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--beam_size", str(TOKENS)])
        assert ended.value.code == 2 and f"--beam_size {TOKENS}: {message}" in capsys.readouterr().err
    with pytest.raises(UsageError, match=message):
        espnet_mla.from_pretrained(model, beam_size=TOKENS)


def test_stage_12_refuses_before_the_jobs_start_and_stage_1_where_the_vocabulary_is_known(recipe, monkeypatch):
    monkeypatch.chdir(recipe)
    options = (
        "--train_set",
        "train",
        "--valid_set",
        "dev",
        "--test_sets",
        "test",
        "--nbpe",
        str(TOKENS),
        "--ngpu",
        "0",
    )

    def checked(*more):
        stages.check(Layout(parse([*options, *more])))

    wrong = ("--inference_args", f"--beam_size {TOKENS}")
    with pytest.raises(UsageError, match=f"--inference_args: --beam_size {TOKENS}: the model has {TOKENS} tokens"):
        checked("--asr_tag", "tiny", "--stage", "12", "--stop_stage", "12", *wrong)
    with pytest.raises(UsageError, match=f"--inference_args: --beam_size {TOKENS}"):
        checked("--asr_tag", "none_yet", "--stop_stage", "12", *wrong)
    config = "decode.yaml"
    with open(config, "w") as file:
        yaml.safe_dump({"ctc_weight": 7}, file)
    with pytest.raises(UserError, match="decode.yaml: ctc_weight: 7: a finite number from 0 to 1"):
        checked("--asr_tag", "tiny", "--stage", "12", "--stop_stage", "12", "--inference_config", config)


def test_a_pool_and_a_recogniser_refuse_it(recipe):
    for wrong in ({"beam_size": 0}, {"ctc_weight": NAN}, {"beam_size": MAX_BEAM_SIZE + 1}):
        for kind in (espnet_mla.StreamPool, espnet_mla.StreamingSpeech2Text):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                kind(recipe / "exp/asr_tiny", **wrong)


def test_a_beam_of_one_fewer_decodes(recipe):
    speech2text = espnet_mla.from_pretrained(recipe / "exp/asr_tiny", beam_size=TOKENS - 1, maxlenratio=-2.0)
    assert speech2text(soundfile.read(recipe / "speech.flac", dtype="float32")[0])[0][2]
