"""Stages 14 and 15: the model as an archive of ESPnet's model zoo, and its upload to the Hugging Face hub."""

import contextlib
import inspect
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

import espnet_mla
from espnet_mla.common.errors import UsageError, UserError, one_line
from espnet_mla.common.log import log
from espnet_mla.common.units import hertz, size
from espnet_mla.common.yaml_files import read_mapping
from espnet_mla.recipe.layout import Layout
from espnet_mla.trained.archive import unpack
from espnet_mla.trained.decoding import DECODING, parse_arguments, read_options
from espnet_mla.trained.inference import own_options
from espnet_mla.trained.names import VERSION_FILE
from espnet_mla.trained.tasks import ASR

TAGS = {
    "asr": "automatic-speech-recognition",
    "st": "speech-translation",
    "slu": "spoken-language-understanding",
    "mt": "machine-translation",
    "s2t": "automatic-speech-recognition",
}
"""Key of a task -> what the hub calls it."""

CARD = """\
---
{metadata}# license: the choice of whoever publishes this model, for example cc-by-4.0
---
# {title}

A speech recogniser trained with [ESPnet](https://github.com/espnet/espnet) through espnet_mla, which makes a model's
attention a choice in its configuration. It needs espnet_mla {version} or newer.

## How to use it
```python
import espnet_mla
from espnet_mla.common.yaml_files import read_mapping
import soundfile

speech2text = espnet_mla.from_pretrained("{name}"{options})
samples, rate = soundfile.read("speech.flac")  # one channel, {rate} Hz
text, *_ = speech2text(samples)[0]
print(text)
```

or, for audio of any rate:

```
espnet-mla transcribe {name} speech.flac{flags}
```
{caches}
{results}"""

CACHES = """
## What its attention keeps
Read off the caches that its own attention modules make, in float32. A frame is one of the encoder's, {rate:g} a second.

| | attention | layers | bytes for one, a layer | bytes for a second of audio |
| --- | --- | --- | --- | --- |
{rows}
"""

NAMING = ("bpemodel", "src_bpemodel", "token_list", "src_token_list", "non_linguistic_symbols")
"""Keys of a configuration that may name files which decoding needs."""
PARTS = {
    "encoder": "encoder (a frame)",
    "decoder_self": "decoder, to itself (a token)",
    "decoder_src": "decoder, to the encoder (a frame)",
}


def pack(layout: Layout) -> None:
    """Stage 14: write `layout.packed_model`, with the files that ESPnet's asr.sh packs under the names it gives them.

    Added to them are README.md, the model's card on the hub, and the version of this package. Images are left out where
    training was told to make none.
    """
    from espnet2.main_funcs.pack_funcs import find_path_and_change_it_recursive
    from espnet2.main_funcs.pack_funcs import pack as espnet_pack

    settings = layout.settings
    config, model = layout.asr_exp / "config.yaml", layout.asr_model
    options = [layout.asr_exp / "RESULTS.md"]
    options += [images] if (images := layout.asr_exp / "images").is_dir() else []
    options += needed(layout)
    options += [Path(settings.nlsyms_txt)] if settings.nlsyms_txt != "none" and layout.task is ASR else []
    members = {path: _member(path) for path in (config, model, *options)}

    # ESPnet's function names files by where they lie below the current folder. In a folder made for it they all lie
    # there, wherever exp/ is, and README.md stands on top, where the hub looks for it.
    readme = card(layout)
    staging = layout.asr_exp / ".packing"
    shutil.rmtree(staging, ignore_errors=True)
    for path, member in members.items():
        (staging / member).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, staging / member)
    trained = named = read_mapping(config)
    for path, member in members.items():
        named = find_path_and_change_it_recursive(named, str(path), str(member))
    if named != trained:
        (staging / members[config]).write_text(yaml.safe_dump(named, sort_keys=False), encoding="utf-8")
    (staging / VERSION_FILE).write_text(yaml.safe_dump({"version": espnet_mla.__version__}), encoding="utf-8")
    (staging / "README.md").write_text(readme, encoding="utf-8")

    more = [*(members[path] for path in options), "README.md", VERSION_FILE]
    with contextlib.chdir(staging):  # espnet2.bin.pack does so, but knows neither SLU nor MT
        espnet_pack(
            files={layout.task.model_key: str(members[model])},
            yaml_files={layout.task.config_key: str(members[config])},
            option=[str(path) for path in more],
            outpath="archive.zip",
        )
    layout.packed_model.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging / "archive.zip", layout.packed_model)
    shutil.rmtree(staging)


def needed(layout: Layout) -> dict[Path, int]:
    """The files that the model needs besides its configuration and parameters, and the stages that make them."""
    settings = layout.settings
    if layout.task is ASR:
        stats = layout.asr_stats_dir / "train" / "feats_stats.npz"
        bpemodel = {Path(layout.bpemodel): 5} if settings.token_type == "bpe" else {}
        return {**({stats: 10} if settings.feats_normalize == "global_mvn" else {}), **bpemodel}
    # Those of the recipe are of speech recognition.
    config = read_mapping(layout.asr_exp / "config.yaml")
    named = [config.get(key) for key in NAMING] + [(config.get("normalize_conf") or {}).get("stats_file")]
    return {Path(name): 11 for name in named if isinstance(name, str)}


def card(layout: Layout) -> str:
    """README.md of the archive: a model card of the Hugging Face hub, with how to use the model and its figures."""
    settings = layout.settings
    language = {"language": settings.lang} if re.fullmatch("[a-z]{2,3}", settings.lang) else {}
    decoding = _decoding_options(layout)
    return CARD.format(
        metadata=yaml.safe_dump(
            {"tags": ["espnet", "audio", TAGS[layout.task.key]], **language, "library_name": "espnet"}, sort_keys=False
        ),
        title=layout.packed_model.stem,
        version=espnet_mla.__version__,
        name=layout.packed_model.name,
        options="".join(f", {name}={value!r}" for name, value in decoding.items()),
        flags="".join(f" --{name} {value}" for name, value in decoding.items() if name in DECODING),
        rate=hertz(settings.fs),
        caches=_cache_section(layout),
        results=(layout.asr_exp / "RESULTS.md").read_text(encoding="utf-8"),
    )


def check_upload(layout: Layout) -> None:
    """Find before any work what stage 15 would fail of.

    Raises:
        UsageError: --hf_repo is missing, or no name that a repository can have.
        UserError: there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo = layout.settings.hf_repo
    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        raise UsageError(f"--hf_repo {repo!r}: owner/name on the Hugging Face hub is needed: {error}") from None
    if not layout.settings.hf_dry_run and get_token() is None:
        raise UserError(
            "stage 15 needs a token of the Hugging Face hub: set HF_TOKEN, or log in once with `hf auth login`; "
            "--hf_dry_run true needs none"
        )


def upload(layout: Layout) -> None:
    """Stage 15: unpack the archive into `layout.hf_folder` and upload that folder, unless `--hf_dry_run` is true.

    Raises:
        UserError: the hub can't be reached, or refuses; or the folder is a git clone.
    """
    repo, folder = layout.settings.hf_repo, layout.hf_folder
    if (folder / ".git").exists():
        raise UserError(f"{folder} is a git clone, made by ESPnet's own asr.sh: push it with git, or move it away")
    unpack(layout.packed_model, folder)
    card = folder / "README.md"  # says how to use the archive; on the hub it is the repository
    card.write_text(card.read_text(encoding="utf-8").replace(layout.packed_model.name, repo), encoding="utf-8")
    if layout.settings.hf_dry_run:
        log(f"--hf_dry_run true: nothing is uploaded; {folder} is what {repo} would get")
        return
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    try:
        api.create_repo(repo, exist_ok=True)
        # A file at a time: of several threads, one may end in "Set changed size during iteration" of tqdm's bars.
        api.create_commit(repo, operations, commit_message="Update model", num_threads=1)
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        what = "refused the token (HF_TOKEN, or `hf auth login`)" if refused else "did not take it"
        message = one_line(error) + (f" ({one_line(error.__cause__)})" if error.__cause__ else "")
        raise UserError(f"--hf_repo {repo}: {api.endpoint} {what}, {folder} stays for --stage 15: {message}") from None
    log(f"Uploaded to {api.endpoint}/{repo}")


def _member(path: Path) -> Path:
    """The name of a file in the archive: ESPnet's, which is relative to the recipe's folder and follows links.

    What a link leads out of the recipe's folder is named after the link, and what lies outside after its whole path.
    """
    here = Path.cwd()
    for place in (path.resolve(), Path(os.path.abspath(path))):
        if place.is_relative_to(here):
            return place.relative_to(here)
    return place.relative_to(place.anchor)


def _decoding_options(layout: Layout) -> dict[str, object]:
    """What stage 12 gives ESPnet's recogniser in place of its defaults."""
    settings, task = layout.settings, layout.task
    given = read_options(Path(settings.inference_config), task) if settings.inference_config else {}
    given |= parse_arguments(own_options(settings.inference_args.split())[1], "--inference_args", task)
    defaults = inspect.signature(task.recogniser_class()).parameters.values()
    return {p.name: given[p.name] for p in defaults if p.name in given and given[p.name] != p.default}


def _cache_section(layout: Layout) -> str:
    """The section of the card on what the attentions keep of the past; nothing where none keeps anything."""
    import torch

    from espnet_mla.attention import ATTENTIONS
    from espnet_mla.models import caches
    from espnet_mla.models.encoding import encoder_of
    from espnet_mla.trained.model import build

    espnet_mla.register()
    config = layout.asr_exp / "config.yaml"
    model, _ = build(read_mapping(config), str(config), layout.asr_model)
    fs = hertz(layout.settings.fs)
    found = caches.fill_caches(model.eval(), encoder_of(model, torch.zeros(2 * fs)))
    found = {part: cache for part, cache in found.items() if cache.attention in ATTENTIONS}  # the others keep nothing
    if not found:
        return ""
    rate = caches.frame_rate(model, fs)
    rows = []
    for part, cache in found.items():
        per_frame = sum(cache.bytes_per_frame)
        a_layer = (
            _range(cache.bytes_per_frame) if per_frame else f"0; a state of fixed size, {_range(cache.fixed_bytes)}"
        )
        a_second = f"{round(per_frame * rate):,}" if cache.unit == "frame" else "as many as it has tokens"
        rows.append(f"| {PARTS[part]} | `{cache.attention}` | {len(cache.caches)} | {a_layer} | {a_second} |")
    return CACHES.format(rate=rate, rows="\n".join(rows))


def _range(sizes: Sequence[float]) -> str:
    least, most = size(min(sizes)), size(max(sizes))
    return least if least == most else f"{least} to {most}"
