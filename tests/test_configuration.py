"""A configuration of training has the types of ESPnet's options, or is refused with the key, before any work."""

from pathlib import Path

import pytest
import yaml
from espnet2.tasks.asr import ASRTask

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.recipe import configuration, stages
from espnet_mla.recipe.layout import Layout
from espnet_mla.recipe.options import parse

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def read(tmp_path):
    """A function that reads a configuration of this text, with options that win over it."""

    def of(text: str, arguments: str = "") -> configuration.Configuration:
        (tmp_path / "a.yaml").write_text(text)
        return configuration.read(str(tmp_path / "a.yaml"), arguments.split())

    return of


@pytest.fixture
def taken(tmp_path, read):
    """A function that gives what asr_train's own parser makes of a configuration with its corrections."""

    def of(text: str, arguments: str = "") -> dict:
        found = read(text, arguments)
        espnet_mla.register()
        command = ["--config", str(tmp_path / "a.yaml"), *arguments.split(), *found.corrections]
        given = vars(ASRTask.get_parser().parse_args(command))
        assert {key: given[key] for key in found.options if key != "config"} == {
            key: value for key, value in found.options.items() if key != "config"
        }
        return given

    return of


@pytest.mark.parametrize("conf", sorted(path.name for path in CONF.glob("*former*.yaml")))
def test_the_configurations_of_the_repository_need_no_correction(conf):
    assert configuration.read(str(CONF / conf), []).corrections == ()


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize(
    ("text", "key", "inner", "value"),
    [
        ("optim: adam\noptim_conf: {weight_decay: #1e-6#}", "optim_conf", "weight_decay", 1e-6),
        ("optim: adam\noptim_conf: {betas: [#9e-1#, 0.98]}", "optim_conf", "betas", [0.9, 0.98]),
        ("scheduler: warmuplr\nscheduler_conf: {warmup_steps: #15e3#}", "scheduler_conf", "warmup_steps", 15000),
        ("encoder: conformer\nencoder_conf: {num_blocks: #4e0#}", "encoder_conf", "num_blocks", 4),
        ("model_conf: {ctc_weight: #3e-1#}", "model_conf", "ctc_weight", 0.3),
        ("specaug: specaug\nspecaug_conf: {time_mask_width_ratio_range: [0, #5e-2#]}",
         "specaug_conf", "time_mask_width_ratio_range", [0, 0.05]),
        ("ctc_conf: {dropout_rate: #1e-1#}", "ctc_conf", "dropout_rate", 0.1),
        ("batch_bins: #4e6#", "batch_bins", None, 4_000_000),
        ("grad_clip: #5e0#", "grad_clip", None, 5.0),
        ("keep_nbest_models: [5, #1e1#]", "keep_nbest_models", None, [5, 10]),
        ("patience: #none#", "patience", None, None),
    ],
)  # fmt: skip
def test_a_number_in_any_spelling_is_the_number(taken, quote, text, key, inner, value):
    found = taken(text.replace("#", quote))[key]
    assert (found[inner] if inner else found) == value


def test_numbers_of_the_command_line_are_so_too_and_win(taken):
    given = taken("optim: adam\noptim_conf: {lr: 1e-3}\nbatch_bins: 1e6",
                  "--optim_conf weight_decay=1e-6 --batch_bins 7")  # fmt: skip
    assert given["optim_conf"] == {"lr": 1e-3, "weight_decay": 1e-6} and given["batch_bins"] == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: adam\noptim_conf: {lr: nan}", "optim_conf: lr: 'nan': a number is needed"),
        ("optim: adam\noptim_conf: {lr: .nan}", "optim_conf: lr: nan: a finite number is needed"),
        ("optim: adam\noptim_conf: {lr: -.inf}", "optim_conf: lr: -inf: a finite number is needed"),
        ("optim: adam\noptim_conf: {lr: }", "optim_conf: lr has no value; without the key it is 0.001"),
        ("optim: adam\noptim_conf: {lr: true}", "optim_conf: lr: True: a number is needed"),
        ("optim: adam\noptim_conf: {betas: [0.9, x]}", r"optim_conf: betas: \[0.9, 'x'\]: a number is needed"),
        ("optim: adam\noptim_conf: {wieght_decay: 0}", "optim_conf: wieght_decay: 0: .* closest: weight_decay"),
        ("optim: adam\noptim_conf:", "optim_conf has no value"),
        ("optim: adam\noptim_conf: 3", "optim_conf: 3 must hold `key: value` lines"),
        ("optim: adm", "optim: adm: valid are adam,"),
        (
            "encoder: conformer\nencoder_conf: {num_blocks: 4.5}",
            "encoder_conf: num_blocks: 4.5: a whole number is needed",
        ),
        (
            "encoder: conformer\nencoder_conf: {macaron_style: 'false'}",
            "encoder_conf: macaron_style: 'false': true or false",
        ),
        ("max_epoch: 1.5", "max_epoch: 1.5: a whole number is needed"),
        ("max_epoch: [3]", r"max_epoch: \[3\]: a whole number is needed"),
        ("max_epoch: 0", "max_epoch: 0: at least 1 is needed"),
        ("seed: 4294967296", "seed: 4294967296: at most 4294967295 is possible"),
        ("max_epoch:", "max_epoch has no value; without the key it is 40"),
        ("keep_nbest_models: [5, 0]", "keep_nbest_models: 0: at least 1"),
        ("grad_clip: .nan", "grad_clip: nan: a number is needed"),
        ("grad_clip: nan", "grad_clip: nan: a number is needed"),
        ("use_amp: maybe", "use_amp: 'maybe': valid are true and false"),
        ("max_cache_size: much", "max_cache_size: 'much': ESPnet's asr_train can't take it"),
        ("encodr: conformer", "encodr is no option of ESPnet's asr_train; closest: encoder"),
        ("max_epoch: 1\nmax_epoch: 2", "max_epoch occurs twice, in lines 1 and 2"),
    ],
)
def test_what_an_option_cannot_have_is_refused_with_file_and_key(read, text, said):
    with pytest.raises(UserError, match=rf"a\.yaml: {said}") as refused:
        read(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--max_epoch 1.5", "argument --max_epoch: invalid int value: '1.5'"),
        ("--accum_grad 0", "accum_grad: 0: at least 1"),
        ("--optim adam --optim_conf lr=nan", "optim_conf: lr: 'nan': a number is needed"),
        ("--max_epcoh 3", "--max_epcoh is no option of ESPnet's asr_train; closest: --max_epoch"),
        ("--config other.yaml", "--config: other.yaml: the configuration has an option of its own"),
        ("--optim_conf lr=[", "while parsing"),
    ],
)
def test_what_the_command_line_cannot_have_is_refused_with_asr_args(read, arguments, said):
    with pytest.raises(UserError, match=f"--asr_args: .*{said}"):
        read("max_epoch: 3", arguments)


def test_what_a_scheduler_would_not_have_is_passed_over_where_there_is_none(read):
    assert read("scheduler: none\nscheduler_conf: {warmup_steps: abc}").corrections == ()


def test_it_is_checked_before_stage_1_and_left_alone_where_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(yaml.safe_dump({"optim": "adam", "optim_conf": {"lr": "fast"}}))
    given = ("--train_set", "t", "--valid_set", "d", "--test_sets", "e", "--ngpu", "0", "--asr_config", "a.yaml")
    with pytest.raises(UserError, match="a.yaml: optim_conf: lr: 'fast': a number is needed"):
        stages.perform(Layout(parse(given)))
    assert [path.name for path in Path().iterdir()] == ["a.yaml"]
    stages.check(Layout(parse([*given, "--skip_train", "true"])))
