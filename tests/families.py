"""A small model of each family of ESPnet's, with random weights, in folders as recipes leave them.

Run as a program it prints what plain ESPnet, without this package, makes of speech.flac and of a source text with each.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import soundfile
import torch
import yaml

TEXT = "THE CAT SAT ON THE MAT\nA BIG DOG RAN TO THE RED BARN AND BACK\nWE SAW FIVE SHIPS\nA TREE BY THE SEA\n"
TIMES = tuple(f"<{tick / 50:.2f}>" for tick in range(0, 101))  # OWSM's, up to two seconds
SYMBOLS = (
    "<na>",
    "<nolang>",
    "<eng>",
    "<deu>",
    "<asr>",
    "<st_deu>",
    "<notimestamps>",
    *TIMES,
    "<sop>",
    "<sos>",
    "<eos>",
)
ENCODER = {"output_size": 32, "attention_heads": 2, "num_blocks": 2, "linear_units": 32, "rel_pos_type": "latest"}
CONFORMER = {
    **ENCODER, "selfattention_layer_type": "rel_selfattn", "pos_enc_layer_type": "rel_pos", "macaron_style": True,
    "cnn_module_kernel": 5,
}  # fmt: skip
BRANCHES = {**ENCODER, "cgmlp_linear_units": 64, "cgmlp_conv_kernel": 5}
TRANSFORMER = {"output_size": 32, "attention_heads": 2, "num_blocks": 2, "linear_units": 32}
DECODER = {"attention_heads": 2, "linear_units": 32, "num_blocks": 2}
FRONTEND = {"frontend": "default", "frontend_conf": {"fs": 16000, "hop_length": 160}, "normalize": None}
WITH_PROMPTS = {
    **FRONTEND, "encoder": "e_branchformer", "encoder_conf": {**BRANCHES, "use_ffn": True, "input_layer": "conv2d"},
    "decoder": "transformer", "decoder_conf": DECODER,
    "preprocessor_conf": {"speech_length": 2.0, "last_time_symbol": TIMES[-1]},
}  # fmt: skip
RECOGNITION = {
    **FRONTEND, "encoder": "conformer", "encoder_conf": CONFORMER, "decoder": "transformer", "decoder_conf": DECODER,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict]] = {
    "asr": ("asr", RECOGNITION),
    "slu": ("slu", RECOGNITION),
    "slu_postencoder": ("slu", RECOGNITION | {
        "postencoder": "transformer", "postencoder_conf": {"output_size": 32, "attention_heads": 2, "num_blocks": 1,
                                                           "linear_units": 16, "input_layer": "None"},
    }),
    "st": ("st", RECOGNITION | {"model_conf": {"asr_weight": 0.3, "mtlalpha": 0.3}}),
    "st_hierarchical": ("st", RECOGNITION | {
        "hier_encoder": "conformer", "hier_encoder_conf": CONFORMER | {"input_layer": None},
        "model_conf": {"asr_weight": 0.3, "mtlalpha": 0.3},
    }),
    "st_multidecoder": ("st", RECOGNITION | {
        "extra_asr_decoder": "transformer", "extra_asr_decoder_conf": DECODER,
        "md_encoder": "transformer", "md_encoder_conf": TRANSFORMER | {"input_layer": None},
        "model_conf": {"asr_weight": 0.3, "mtlalpha": 0.3},
    }),
    "mt": ("mt", {
        "frontend": "embed", "frontend_conf": {"embed_dim": 32}, "encoder": "transformer",
        "encoder_conf": TRANSFORMER | {"input_layer": None}, "decoder": "transformer", "decoder_conf": DECODER,
    }),
    "s2t": ("s2t", WITH_PROMPTS),
    "s2t_ctc": ("s2t_ctc", FRONTEND | {
        "encoder": "e_branchformer_ctc",
        "encoder_conf": {**BRANCHES, "use_ffn": True, "input_layer": "conv2d8", "interctc_layer_idx": [1],
                         "interctc_use_conditioning": True},
        "promptencoder": "transformer", "promptencoder_conf": TRANSFORMER,
        "preprocessor_conf": {"speech_length": 6.0}, "model_conf": {"interctc_weight": 0.3},
    }),
}  # fmt: skip
"""Name -> ESPnet's task, and what its configuration says besides the defaults."""
WITH_SOURCE = ("st", "mt")
"""Tasks with a second token list."""
RECOGNISERS = {"asr": "Speech2Text", "slu": "Speech2Understand", "st": "Speech2Text", "mt": "Text2Text"}
DECODING = {"beam_size": 3, "maxlenratio": 0.3, "nbest": 3}
DECODING_OF = {"mt": {"ctc_weight": 0.0}}
"""Of a task, besides."""


def build(folder: Path) -> None:
    """Fill `folder` with speech, sentencepiece's models, and exp/<family> for each family."""
    rng = np.random.default_rng(0)
    soundfile.write(folder / "speech.flac", rng.uniform(-0.3, 0.3, 24000), 16000)
    text = folder / "sentences"
    text.write_text(TEXT)
    for name, symbols in (("bpe", ()), ("owsm", SYMBOLS)):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / name), vocab_size=30 + len(symbols),
            user_defined_symbols=list(symbols), minloglevel=2,
        )  # fmt: skip
    for name in FAMILIES:
        add(folder, name)


def add(folder: Path, name: str) -> None:
    """Make exp/<name>."""
    task_name, conf = FAMILIES[name]
    prompted = task_name.startswith("s2t")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / ("owsm.model" if prompted else "bpe.model")))
    tokens = [pieces.id_to_piece(n) for n in range(pieces.get_piece_size())]
    words = [token for token in tokens if token not in ("<unk>", "<s>", "</s>", *SYMBOLS)]
    token_list = ["<blank>", "<unk>", *words]
    token_list += SYMBOLS if prompted else ["<sos/eos>"]
    task = task_class(task_name)
    defaults = task.get_default_config()
    config = {**defaults, **{key: value for key, value in conf.items() if not key.endswith("_conf")}}
    for key in (key for key in config if key.endswith("_conf")):
        config[key] = conf.get(key, {})  # as a training leaves it
    if prompted:
        config["preprocessor_conf"] = defaults["preprocessor_conf"] | conf["preprocessor_conf"]
    config |= {"token_list": token_list, "token_type": "bpe", "bpemodel": "owsm.model" if prompted else "bpe.model"}
    if task_name in WITH_SOURCE:
        config |= {"src_token_list": token_list, "src_token_type": "bpe", "src_bpemodel": "bpe.model"}
    experiment = folder / "exp" / name
    experiment.mkdir(parents=True)
    config |= {"output_dir": f"exp/{name}", "config": None}
    (experiment / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(3)
    model, _ = task.build_model_from_file(experiment / "config.yaml")
    torch.save(model.state_dict(), experiment / "valid.acc.ave.pth")


def task_class(name: str) -> type:
    """ESPnet's class of a task."""
    module = importlib.import_module(f"espnet2.tasks.{name}")
    return getattr(module, "S2TTask" if name == "s2t_ctc" else f"{name.upper()}Task")


def given(folder: Path, name: str):
    """What a family's model is given: speech, or tokens of a text."""
    if FAMILIES[name][0] == "mt":
        return np.arange(3, 12)
    return soundfile.read(folder / "speech.flac", dtype="float32")[0]


def hypotheses(recogniser, content) -> list[tuple[list[int], float]]:
    """Tokens and score of each hypothesis, the best one first."""
    results = recogniser(content)
    results = results[0] if isinstance(results, tuple) else results
    return [(result[2], float(result[-1].score)) for result in results]


def plain(folder: Path) -> dict[str, list]:
    """What ESPnet's own recognisers make of each."""
    found = {}
    for name, (task, _) in FAMILIES.items():
        key = "s2t" if task == "s2t_ctc" else task
        module = importlib.import_module(f"espnet2.bin.{key}_inference")
        files = {f"{key}_train_config": f"exp/{name}/config.yaml", f"{key}_model_file": f"exp/{name}/valid.acc.ave.pth"}
        recogniser = getattr(module, RECOGNISERS.get(key, "Speech2Text"))(
            **files, **DECODING, **DECODING_OF.get(task, {})
        )  # fmt: skip
        found[name] = hypotheses(recogniser, given(folder, name))
    return found


if __name__ == "__main__":
    print(json.dumps(plain(Path())))
    assert not any(name.startswith("espnet_mla") for name in sys.modules)
