"""Who a model is, and which models are the same but for their seed."""

import json
from pathlib import Path

import yaml

from espnet_mla.measure import identity
from espnet_mla.trained.model import Source


def source(folder: Path, name: str, **changes: object) -> Source:
    """An experiment in the folder of a recipe."""
    place = folder / "exp" / name
    place.mkdir(parents=True, exist_ok=True)
    config = {
        "encoder": "conformer", "encoder_conf": {"num_blocks": 2}, "seed": 1, "output_dir": f"exp/{name}",
        "config": "conf/x.yaml", "ngpu": 0, "dist_rank": None, "init_param": [],
        "train_data_path_and_name_and_type": [["dump/raw/train_sp/wav.scp", "speech", "sound"],
                                              ["dump/raw/train_sp/text", "text", "text"]],
    } | changes  # fmt: skip
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    return Source(config, place / "config.yaml", place / "valid.acc.ave.pth", folder, packed=False)


def conf(folder: Path, name: str, **changes: object) -> str:
    return identity.figures(source(folder, name, **changes), name)["conf"]


def test_models_that_differ_by_their_seed_and_how_they_were_run_share_their_conf(tmp_path):
    one = conf(tmp_path, "mla_seed1")
    assert one == conf(tmp_path, "mla_seed2", seed=2, ngpu=4, dist_rank=3, num_workers=8)
    # Tuned models go on from others, whose names have their seeds.
    tuned = (conf(tmp_path, f"tuned{n}", seed=n, init_param=[f"exp/A_seed{n}_mla8/model.pth"]) for n in (1, 2))
    assert len(set(tuned)) == 1


def test_models_that_differ_in_anything_else_do_not(tmp_path):
    one = conf(tmp_path, "A")
    changes = (
        {"encoder": "branchformer"}, {"encoder_conf": {"num_blocks": 3}}, {"max_epoch": 3},
        {"init_param": ["exp/A/model.pth"]},
    )  # fmt: skip
    assert one not in {conf(tmp_path, f"B{n}", **change) for n, change in enumerate(changes)}


def test_conversions_by_different_methods_are_different_models(tmp_path):
    found = set()
    for method in ("joint", "attention"):
        model = source(tmp_path, method)
        model.config_file.with_name("conversion.json").write_text(json.dumps({"method": method, "layers": []}))
        found.add(identity.figures(model, method)["conf"])
    assert len(found) == 2


def test_training_set_and_note_of_the_corpus_are_told_as_far_as_they_are_there(tmp_path):
    model = source(tmp_path, "A")
    told = identity.figures(model, "A")
    assert (told["name"], told["seed"], told["file"]) == ("A", 1, "valid.acc.ave.pth")
    assert (told["training_set"], told["training_utterances"], told["note"]) == ("train_sp", None, None)
    (tmp_path / "dump/raw/train_sp").mkdir(parents=True)
    (tmp_path / "dump/raw/train_sp/wav.scp").write_text("a a.flac\nb b.flac\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/note").write_text("A small corpus.\n")
    told = identity.figures(model, "A")
    assert (told["training_utterances"], told["note"]) == (2, "A small corpus.")
