"""Stage 14 packs what ESPnet's asr.sh packs, with a card and our version; stage 15 uploads exactly that."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import experiment
import pytest
import yaml
from experiment import DECODING, OPTIONS, RANK, layout

import espnet_mla
from espnet_mla.common.errors import UserError
from espnet_mla.recipe import packing, stages
from espnet_mla.trained.pretrained import from_pretrained

PACK = ("--stage", "14", "--skip_packing", "false")
UPLOAD = ("--stage", "15", "--skip_upload_hf", "false", "--hf_repo", "me/tiny")


def content(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as members:
        return {name: members.read(name) for name in members.namelist()}


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_archive_holds_what_upstreams_command_packs_and_two_files_more(recipe, archive, tmp_path):
    # The command of stage 14 of ESPnet's asr.sh.
    command = [
        sys.executable, "-m", "espnet2.bin.pack", "asr",
        "--asr_train_config", "exp/asr_tiny/config.yaml", "--asr_model_file", "exp/asr_tiny/valid.acc.ave.pth",
        "--option", "exp/asr_stats_raw_en_bpe30/train/feats_stats.npz",
        "--option", "data/en_token_list/bpe_unigram30/bpe.model", "--option", "exp/asr_tiny/RESULTS.md",
        "--option", "exp/asr_tiny/images", "--outpath", str(tmp_path / "upstream.zip"),
    ]  # fmt: skip
    subprocess.run(command, cwd=recipe, check=True, capture_output=True)
    upstream, ours = content(tmp_path / "upstream.zip"), content(archive)
    assert ours.keys() - upstream.keys() == {"README.md", "espnet_mla.yaml"}
    meta = [yaml.safe_load(files.pop("meta.yaml")) for files in (upstream, ours)]
    assert next({key: value for key, value in each.items() if key != "timestamp"} for each in meta) == {
        key: value for key, value in meta[1].items() if key != "timestamp"
    }
    assert {name: ours[name] for name in upstream} == upstream
    assert yaml.safe_load(ours["espnet_mla.yaml"]) == {"version": espnet_mla.__version__}


def test_card_has_the_hubs_metadata_the_results_and_the_bytes_of_the_caches(archive):
    card = content(archive)["README.md"].decode()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "tags": ["espnet", "audio", "automatic-speech-recognition"], "language": "en", "library_name": "espnet",
    }  # fmt: skip
    assert "|decode_asr/test|12.3|" in text
    assert f"espnet_mla {espnet_mla.__version__} or newer" in text
    # float32; 16,000 / 160 (hop_length) / 4 (conv2d) frames a second; two layers.
    frames = 16000 / 160 / 4
    assert f"{frames:g} a second" in text
    assert f"| encoder (a frame) | `mla` | 2 | {RANK * 4} | {round(2 * RANK * 4 * frames):,} |" in text
    # The decoder's one layer keeps keys and values, 32 wide.
    assert f"| decoder, to the encoder (a frame) | `mha` | 1 | 256 | {round(256 * frames):,} |" in text
    assert "| decoder, to itself (a token) | `mha` | 1 | 256 | as many as it has tokens |" in text


def test_the_lines_of_the_card_run(archive, recipe, tmp_path, monkeypatch, capsys, expected):
    shutil.copy(archive, tmp_path)
    shutil.copy(recipe / "speech.flac", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = content(archive)["README.md"].decode()
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert capsys.readouterr().out.splitlines()[-1] == expected[0][0]
    flags = re.search(r"espnet-mla transcribe (\S+) speech.flac (.*)", card)
    assert flags[1] == archive.name
    words = flags[2].split()
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        f"--{name}": str(value) for name, value in DECODING.items()
    }


def test_card_tells_a_fixed_state_and_keeps_silent_about_espnets_own_encoder(recipe, tmp_path, monkeypatch):
    shutil.copytree(recipe, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    experiment.add_variant("linear", attention_layer_type="linear", attention_conf={}, pos_enc_layer_type="rope")
    # 2 heads, d_head 16: numerator and denominator in float32.
    state = 2 * (16 * 16 + 16) * 4
    assert f"| encoder (a frame) | `linear` | 2 | 0; a state of fixed size, {state:,} | 0 |" in packing.card(
        layout("--asr_tag", "linear")
    )
    experiment.add_variant("own", attention_layer_type="rel_selfattn", attention_conf={})
    assert "| encoder (a frame)" not in packing.card(layout("--asr_tag", "own"))


def moved(name: str, recipe: Path, tmp_path: Path) -> tuple[str, ...]:
    """A copy of the recipe's folder, in which exp/ lies elsewhere; the options that say so."""
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    shutil.copytree(recipe, folder, symlinks=True)
    (folder / "exp").rename(elsewhere)
    if name == "by a link":
        (folder / "exp").symlink_to(elsewhere)
        return ()
    config = elsewhere / "asr_tiny" / "config.yaml"
    config.write_text(config.read_text().replace(" exp/", f" {elsewhere}/"))
    return ("--expdir", str(elsewhere))


@pytest.mark.parametrize("name", ["by a link", "by --expdir"])
def test_an_experiment_outside_of_the_recipes_folder_is_packed_whole(name, recipe, tmp_path, monkeypatch, expected):
    options = moved(name, recipe, tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    stages.perform(layout(*PACK, *options))
    packed = tmp_path / "packed.zip"
    (tmp_path / "elsewhere" / "asr_tiny" / "asr_tiny_valid.acc.ave.zip").rename(packed)
    monkeypatch.chdir(tmp_path)
    for gone in ("here", "elsewhere"):
        shutil.rmtree(tmp_path / gone)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert experiment.heard(from_pretrained(packed, **DECODING), experiment.samples(recipe)) == expected


def test_what_a_killed_run_has_left_is_not_packed(recipe, archive, tmp_path, monkeypatch):
    shutil.copytree(recipe, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    left = Path("exp/asr_tiny/.packing/exp/asr_tiny/images/half.png")
    left.parent.mkdir(parents=True)
    left.touch()
    stages.perform(layout(*PACK))
    assert content(Path("exp/asr_tiny") / archive.name).keys() == content(archive).keys()
    assert [path.name for path in Path("exp/asr_tiny").glob(".*")] == [".lock"]


def test_options_that_decoding_would_refuse_are_named(recipe, tmp_path, monkeypatch):
    shutil.copytree(recipe, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--inference_args: --bogus is no option"):
        stages.perform(layout(*PACK, "--inference_args", "--bogus 1"))
    assert not Path("exp/asr_tiny/.packing").exists()


def test_nothing_is_packed_or_uploaded_unless_asked_for():
    assert layout("--stage", "14").performed == ()
    assert layout(*PACK).performed == (14,)
    assert layout(*UPLOAD).performed == (15,)


def test_dry_run_writes_the_content_of_the_archive_and_nothing_else(recipe, archive, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe)
    options = (*UPLOAD, "--hf_dry_run", "true", "--asr_exp", "exp/asr_tiny", "--expdir", str(tmp_path))
    stale = tmp_path / "hf_me_tiny" / "stale"
    stale.parent.mkdir()
    stale.touch()
    stages.perform(layout(*options))
    written = below(tmp_path / "hf_me_tiny")
    card, packed = written.pop("README.md"), content(archive)
    assert card == packed.pop("README.md").replace(archive.name.encode(), b"me/tiny") and b"me/tiny" in card
    assert written == packed
    (tmp_path / "hf_me_tiny" / ".git").mkdir()
    with pytest.raises(UserError, match="hf_me_tiny is a git clone"):
        stages.perform(layout(*options))


@pytest.mark.parametrize("repo", ["", "tiny", "me/../tiny", "a/b/c"])
def test_a_name_that_no_repository_can_have_is_found_first(repo):
    with pytest.raises(UserError, match="--hf_repo .*owner/name"):
        stages.check(layout(*UPLOAD[:-1], repo))


def test_upload_without_an_archive_names_stage_14(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="asr_tiny_valid.acc.ave.zip, which stage 14 makes: start with --stage 14"):
        stages.perform(layout(*UPLOAD, "--hf_dry_run", "true"))


class Hub(ThreadingHTTPServer):
    """The few calls of the Hugging Face hub that an upload makes."""

    token = "hf_right"
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Calls)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, bytes] = {}  # of LFS, by their SHA256
        self.repository: dict[str, bytes] = {}
        self.created: list[dict] = []


class Calls(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"  # a connection stays: one that is closed while the client sends fails an upload

    def do_POST(self):
        sent = self.body()
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self.answer({"error": "Invalid username or password."}, 401)
        answers = {
            "/api/repos/create": self.create,
            "/api/validate-yaml": lambda sent: {"errors": [], "warnings": []},
            "/api/models/me/tiny/preupload/main": self.preupload,
            "/me/tiny.git/info/lfs/objects/batch": self.batch,
            "/api/models/me/tiny/commit/main": self.commit,
        }
        return self.answer(answers[self.path](sent))

    def do_GET(self):
        self.answer({"error": "Invalid username or password."}, 401)

    def do_PUT(self):
        sent = self.body()
        assert self.path == f"/objects/{hashlib.sha256(sent).hexdigest()}"
        self.server.objects[self.path.removeprefix("/objects/")] = sent
        self.answer({})

    def create(self, sent):
        self.server.created.append(json.loads(sent))
        return {"url": f"{self.server.url}/me/tiny"}

    def preupload(self, sent):
        names = [file["path"] for file in json.loads(sent)["files"]]
        return {
            "files": [
                {"path": name, "uploadMode": "lfs" if name.endswith((".pth", ".npz")) else "regular",
                 "shouldIgnore": False}
                for name in names
            ]
        }  # fmt: skip

    def batch(self, sent):
        return {
            "transfer": "basic",
            "objects": [
                {**wanted, "actions": {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}}
                for wanted in json.loads(sent)["objects"]
            ],
        }

    def commit(self, sent):
        for operation in map(json.loads, sent.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                self.server.repository[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.server.repository[value["path"]] = self.server.objects[value["oid"]]
        return {"commitUrl": f"{self.server.url}/me/tiny/commit/{'0' * 40}", "commitOid": "0" * 40}

    def body(self):
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        sent = b""
        while size := int(self.rfile.readline(), 16):
            sent += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return sent

    def answer(self, said, status=200):
        encoded = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def upload(recipe: Path, home: Path, endpoint: str, token: str | None, *more: str) -> subprocess.CompletedProcess:
    """Stage 15 in a process of its own: huggingface_hub reads the environment when it is imported."""
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")}  # fmt: skip
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "espnet_mla.recipe", *OPTIONS, *UPLOAD, *more]
    command += ["--asr_exp", "exp/asr_tiny", "--expdir", str(home)]
    return subprocess.run(command, cwd=recipe, env=environment, capture_output=True, text=True)


def test_the_hub_gets_the_folder_of_the_dry_run_byte_for_byte(recipe, archive, tmp_path, hub):
    dry = upload(recipe, tmp_path / "dry", hub.url, None, "--hf_dry_run", "true")
    assert dry.returncode == 0, dry.stderr
    assert not hub.created
    done = upload(recipe, tmp_path / "wet", hub.url, hub.token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(asked["organization"], asked["name"]) for asked in hub.created] == [("me", "tiny")]
    assert hub.repository == below(tmp_path / "dry" / "hf_me_tiny")
    assert hub.repository.keys() == content(archive).keys()
    assert len(hub.objects) == 2
    assert hub.token not in done.stdout + done.stderr


def test_a_refused_token_is_told_in_a_line_that_does_not_hold_it(recipe, archive, tmp_path, hub):
    done = upload(recipe, tmp_path, hub.url, "hf_wrong")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --hf_repo me/tiny: {hub.url} refused the token (HF_TOKEN")
    assert done.stderr.count("\n") == 1 and "hf_wrong" not in done.stdout + done.stderr
    assert not hub.repository


def test_a_missing_token_is_found_before_any_work(recipe, tmp_path, hub):
    done = upload(recipe, tmp_path, hub.url, None, "--stage", "14", "--skip_packing", "false")
    assert done.returncode == 1 and "Stage 14" not in done.stdout
    assert done.stderr.startswith("error: stage 15 needs a token of the Hugging Face hub: set HF_TOKEN")


def test_a_hub_out_of_reach_is_told_in_a_line(recipe, archive, tmp_path):
    done = upload(recipe, tmp_path, "http://127.0.0.1:9", "hf_right")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --hf_repo me/tiny: http://127.0.0.1:9 did not take it")
    assert done.stderr.count("\n") == 1
