"""register() puts the choices into ESPnet's registries, and brings nothing in before it is called."""

import subprocess
import sys

import pytest
from espnet2.tasks import asr, mt, s2t, s2t_ctc, slu, st

import espnet_mla
from espnet_mla.models.decoder import DECODERS
from espnet_mla.models.encoders import ENCODERS


@pytest.fixture(autouse=True)
def registered():
    espnet_mla.register()


def test_every_task_gets_the_encoders_and_registering_again_changes_nothing():
    before = {task: dict(task.encoder_choices.classes) for task in (asr, st, slu, mt, s2t, s2t_ctc)}
    espnet_mla.register()
    for task, classes in before.items():
        assert task.encoder_choices.classes == classes
        assert {name for name in ENCODERS if name in classes} >= {"conformer", "branchformer"}
        for name in classes.keys() & ENCODERS.keys():
            assert classes[name] is ENCODERS[name]


def test_second_encoders_and_decoders_have_the_choices_too():
    for choices in (st.hier_encoder_choices, st.md_encoder_choices, s2t_ctc.promptencoder_choices):
        assert choices.classes["transformer"] is ENCODERS["transformer"]
    for choices in (st.extra_asr_decoder_choices, st.extra_mt_decoder_choices, mt.decoder_choices):
        assert choices.classes["transformer"] is DECODERS["transformer"]
    assert slu.postencoder_choices.classes["conformer"] not in ENCODERS.values(), "another class of that name"


def test_importing_the_package_brings_in_neither_torch_nor_espnet():
    code = "import sys, espnet_mla; sys.exit(any(name in sys.modules for name in ('torch', 'espnet2', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def printed_config(monkeypatch, *arguments, task=asr.ASRTask):
    """What `asr_train --print_config` prints: it reads sys.argv."""
    monkeypatch.setattr(sys, "argv", ["asr_train", *arguments])
    return task.get_default_config()


@pytest.mark.parametrize("name", ENCODERS)
def test_print_config_lists_espnets_keys_and_ours(monkeypatch, name):
    task = s2t_ctc.S2TTask if name == "e_branchformer_ctc" else asr.ASRTask
    conf = printed_config(monkeypatch, "--encoder", name, task=task)["encoder_conf"]
    assert conf["attention_conf"] == {}
    assert ENCODERS[name].attention_key in conf
    assert {"output_size", "num_blocks", "pos_enc_layer_type", "use_sdpa"} <= set(conf)


def test_nested_keys_are_set_on_the_command_line(monkeypatch):
    arguments = ("--encoder", "branchformer", "--encoder_conf", "attention_conf.kv_lora_rank=32")
    assert printed_config(monkeypatch, *arguments)["encoder_conf"]["attention_conf"] == {"kv_lora_rank": 32}


def test_editdistance_is_there_for_espnets_error_rates():
    import editdistance

    assert editdistance.eval(list("KITTEN"), list("SITTING")) == 3


def test_what_espnet_has_built_upon_or_copied_before_is_neither_broken_nor_forgotten():
    code = (
        "import torch, espnet2.tasks.enh_s2t as task, espnet_mla; espnet_mla.register()\n"
        "print(task.asr_encoder_choices.get_class('conformer').__module__)\n"
        "print(task.asr_decoder_choices.get_class('transformer').__module__)\n"
        "print(task.st_decoder_choices.get_class('transformer').__module__)\n"
        "from espnet2.legacy.nets.scorers.uasr import UASRPrefixScorer\n"
        "scorer = UASRPrefixScorer(12)\n"
        "state = scorer.batch_init_state(torch.randn(9, 13))\n"
        "print(tuple(scorer.batch_score_partial(torch.tensor([[12]]), None, [state], None)[0].shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ours = ["espnet_mla.models.encoders", "espnet_mla.models.decoder", "espnet_mla.models.decoder"]
    assert done.stdout.splitlines()[-4:] == [*ours, "(1, 13)"], done.stderr
