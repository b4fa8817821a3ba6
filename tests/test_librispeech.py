"""espnet_mla.recipe.librispeech: a corpus is downloaded whole, and becomes Kaldi data folders that can be trusted."""

import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_mla.common.errors import UserError
from espnet_mla.common.tables import read_table
from espnet_mla.recipe import librispeech

REAL = Path(os.environ.get("LIBRISPEECH_REAL", Path(__file__).parents[2] / "shared" / "speech"))
READERS = {"train-clean-100": "11", "dev-clean": "21", "dev-other": "31", "test-clean": "41", "test-other": "51"}
FS = 16000


def write_chapter(corpus_dir, part, reader, chapter, number=2):
    folder = corpus_dir / "LibriSpeech" / part / reader / chapter
    folder.mkdir(parents=True)
    lines = []
    for index in range(number):
        name = f"{reader}-{chapter}-{index:04d}"
        noise = np.random.default_rng(index).uniform(-0.5, 0.5, FS // 10)
        soundfile.write(folder / f"{name}.flac", noise, FS, "PCM_16")
        lines.append(f"{name} WORDS OF UTTERANCE {index}\n")
    (folder / f"{reader}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def corpus_dir(tmp_path):
    folder = tmp_path / "my corpora"
    for part, reader in READERS.items():
        write_chapter(folder, part, reader, "7")
        write_chapter(folder, part, reader, "8", number=1)
    rows = [f"{reader:<5}| {sex} | {part} | 1.0 | Name" for (part, reader), sex in zip(READERS.items(), "MFMFM")]
    (folder / "LibriSpeech" / "SPEAKERS.TXT").write_text(";ID  |SEX| SUBSET |MINUTES| NAME\n" + "\n".join(rows) + "\n")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPrepare:
    def test_a_part_becomes_a_kaldi_data_folder(self, corpus_dir, tmp_path):
        librispeech.prepare(corpus_dir, tmp_path / "data", nj=2)
        folder = tmp_path / "data" / "train_clean_100"
        flac = corpus_dir / "LibriSpeech/train-clean-100/11/7/11-7-0000.flac"
        assert read_table(folder / "wav.scp")["11-7-0000"] == str(flac)
        assert (folder / "text").read_text().splitlines()[1] == "11-7-0001 WORDS OF UTTERANCE 1"
        assert (folder / "utt2spk").read_text() == "11-7-0000 11-7\n11-7-0001 11-7\n11-8-0000 11-8\n"
        assert (folder / "spk2utt").read_text() == "11-7 11-7-0000 11-7-0001\n11-8 11-8-0000\n"
        assert (folder / "spk2gender").read_text() == "11-7 m\n11-8 m\n"

    def test_dev_is_both_dev_parts(self, corpus_dir, tmp_path):
        librispeech.prepare(corpus_dir, tmp_path, nj=1)
        for name in ("wav.scp", "text", "utt2spk", "spk2utt", "spk2gender"):
            both = read_table(tmp_path / "dev_clean" / name) | read_table(tmp_path / "dev_other" / name)
            assert read_table(tmp_path / "dev" / name) == both

    def test_paths_are_absolute(self, corpus_dir, tmp_path, monkeypatch):
        monkeypatch.chdir(corpus_dir.parent)
        librispeech.prepare(Path(corpus_dir.name), Path("data"), nj=2)
        assert all(Path(path).is_absolute() for path in read_table(tmp_path / "data/dev/wav.scp").values())

    def test_a_rerun_writes_the_same_bytes(self, corpus_dir, tmp_path):
        librispeech.prepare(corpus_dir, tmp_path / "data", nj=1)
        first = contents(tmp_path / "data")
        librispeech.prepare(corpus_dir, tmp_path / "data", nj=2)
        assert contents(tmp_path / "data") == first

    def test_speakers_txt_may_be_missing_or_lack_a_reader(self, corpus_dir, tmp_path, caplog):
        speakers = corpus_dir / "LibriSpeech" / "SPEAKERS.TXT"
        speakers.write_text("\n".join(line for line in speakers.read_text().splitlines() if not line.startswith("11")))
        librispeech.prepare(corpus_dir, tmp_path / "lacking", nj=1)
        assert "SPEAKERS.TXT lacks 11-7" in caplog.text
        assert not (tmp_path / "lacking/train_clean_100/spk2gender").exists()
        assert (tmp_path / "lacking/dev/spk2gender").exists()
        speakers.unlink()
        librispeech.prepare(corpus_dir, tmp_path / "missing", nj=1)
        assert not list((tmp_path / "missing").rglob("spk2gender"))

    def test_missing_parts_are_named_with_the_folder_looked_in(self, corpus_dir, tmp_path):
        shutil.rmtree(corpus_dir / "LibriSpeech" / "dev-other")
        with pytest.raises(UserError, match=re.escape(f"{corpus_dir}/LibriSpeech lacks dev-other: LIBRISPEECH")):
            librispeech.prepare(corpus_dir, tmp_path, nj=1)

    def test_a_part_without_transcripts_is_refused(self, corpus_dir, tmp_path):
        for path in (corpus_dir / "LibriSpeech" / "test-other").rglob("*.trans.txt"):
            path.unlink()
        with pytest.raises(UserError, match="test-other holds no transcripts"):
            librispeech.prepare(corpus_dir, tmp_path, nj=1)

    @pytest.mark.parametrize("damage", ["not audio", "empty", "missing", "no transcript"])
    def test_one_broken_utterance_in_a_hundred_is_named_and_left_out(self, tmp_path, caplog, damage):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=100)
        flac, transcript = folder / "11-7-0042.flac", folder / "11-7.trans.txt"
        if damage == "not audio":
            flac.write_bytes(b"fLaC but no more")
        elif damage == "empty":
            flac.write_bytes(b"")
        elif damage == "missing":
            flac.unlink()
        else:
            transcript.write_text(transcript.read_text().replace("11-7-0042 WORDS OF UTTERANCE 42\n", ""))
        librispeech.prepare(tmp_path, tmp_path / "data", nj=1, parts=["train-clean-100"])
        assert "11-7-0042 is left out" in caplog.text and "1 of 100 utterances are broken" in caplog.text
        for name in ("wav.scp", "text", "utt2spk"):
            table = read_table(tmp_path / "data" / "train_clean_100" / name)
            assert len(table) == 99 and "11-7-0042" not in table

    @pytest.mark.parametrize(("lines", "reason"), [
        ("11-7-0042 WORDS\n11-7-0042 OTHER WORDS\n", "has it twice"),
        ("11-7-0042\n", "has no words for it"),
        ("11-7-0042  \r\n", "has no words for it"),
    ])  # fmt: skip
    def test_a_transcript_that_says_two_things_or_nothing_is_named_and_left_out(self, tmp_path, caplog, lines, reason):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=100)
        transcript = folder / "11-7.trans.txt"
        transcript.write_text(transcript.read_text().replace("11-7-0042 WORDS OF UTTERANCE 42\n", lines))
        librispeech.prepare(tmp_path, tmp_path / "data", nj=1, parts=["train-clean-100"])
        assert f"11-7-0042 is left out: {transcript} {reason}" in caplog.text
        assert "1 of 100 utterances are broken" in caplog.text
        assert len(read_table(tmp_path / "data" / "train_clean_100" / "text")) == 99

    def test_an_id_with_a_space_is_named_and_breaks_no_table(self, tmp_path, caplog):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=200)
        (folder / "11-7-0042.flac").rename(folder / "11-7-00 42.flac")
        librispeech.prepare(tmp_path, tmp_path / "data", nj=1, parts=["train-clean-100"])
        assert "11-7-00 42.flac has no transcript" in caplog.text and "2 of 201 utterances are broken" in caplog.text
        assert len(read_table(tmp_path / "data" / "train_clean_100" / "wav.scp")) == 199

    def test_an_id_with_a_space_of_another_script_breaks_no_table_either(self, tmp_path, caplog):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=200)
        (folder / "11-7-0042.flac").rename(folder / "11-7-00\u00a042.flac")  # ESPnet splits lines there
        transcript = folder / "11-7.trans.txt"
        transcript.write_text(transcript.read_text().replace("11-7-0042", "11-7-00\u00a042"))
        librispeech.prepare(tmp_path, tmp_path / "data", nj=1, parts=["train-clean-100"])
        assert "2 of 201 utterances are broken" in caplog.text
        for name in ("wav.scp", "text", "utt2spk"):
            table = read_table(tmp_path / "data" / "train_clean_100" / name)
            assert len(table) == 199 and all(key.split() == [key] for key in table)

    def test_blanks_of_any_kind_become_single_spaces_and_are_counted(self, tmp_path, caplog):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=3)
        librispeech.prepare(tmp_path, tmp_path / "plain", nj=1, parts=["train-clean-100"])
        transcript = folder / "11-7.trans.txt"
        words = ("WORDS\u00a0OF  UTTERANCE 0", "WORDS\u3000OF\tUTTERANCE\u2028 1\u0085", "WORDS OF UTTERANCE 2")
        transcript.write_text("".join(f"11-7-000{number} {text}\n" for number, text in enumerate(words)))
        librispeech.prepare(tmp_path, tmp_path / "blanks", nj=1, parts=["train-clean-100"])
        assert contents(tmp_path / "blanks") == contents(tmp_path / "plain")
        assert "train-clean-100: 2 of 3 transcripts had runs of blanks" in caplog.text

    def test_a_control_character_is_named_and_left_out_as_kaldi_refuses_it(self, tmp_path, caplog):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=100)
        transcript = folder / "11-7.trans.txt"
        transcript.write_text(transcript.read_text().replace("UTTERANCE 42", "UTTER\x07ANCE 42"))
        librispeech.prepare(tmp_path, tmp_path / "data", nj=1, parts=["train-clean-100"])
        assert "has the control character U+0007 in it" in caplog.text
        assert len(read_table(tmp_path / "data/train_clean_100/text")) == 99

    def test_a_name_that_is_not_utf_8_is_left_out_and_shown(self, tmp_path, capsys):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=200)
        os.rename(folder / "11-7-0042.flac", os.fsencode(folder) + b"/11-7-00\xff42.flac")
        command = [sys.executable, "-c", "from espnet_mla.common.log import show_logging; show_logging(); "
                   "import sys; from pathlib import Path; from espnet_mla.recipe import librispeech; "
                   "librispeech.prepare(Path(sys.argv[1]), Path(sys.argv[1]) / 'data', 1, ['train-clean-100'])"]  # fmt: skip
        done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "42.flac has no transcript" in done.stdout and "2 of 201 utterances are broken" in done.stdout
        assert len(read_table(tmp_path / "data/train_clean_100/wav.scp")) == 199

    def test_a_corpus_below_a_name_that_no_table_can_hold_is_refused(self, tmp_path):
        for name in (b"caf\xe9", b"line\nfeed"):
            write_chapter(tmp_path / "corpus", "train-clean-100", "11", "7")
            corpus = (tmp_path / "corpus").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
            with pytest.raises(UserError, match="wav.scp cannot have the line 11-7-0000 "):
                librispeech.prepare(corpus, tmp_path / "data", nj=1, parts=["train-clean-100"])

    @pytest.mark.parametrize("what", ["11", "11/7"])
    def test_what_cannot_be_read_is_named_and_not_passed_over(self, corpus_dir, tmp_path, what):
        unreadable = corpus_dir / "LibriSpeech" / "train-clean-100" / what
        if os.geteuid() == 0:  # root may read anything but a link to itself
            unreadable.rename(tmp_path / "away")
            unreadable.symlink_to(unreadable.name)
        else:
            unreadable.chmod(0)
        try:
            with pytest.raises(OSError) as refused:
                librispeech.prepare(corpus_dir, tmp_path / "data", nj=1)
        finally:
            if not unreadable.is_symlink():
                unreadable.chmod(0o700)
        assert refused.value.filename.startswith(str(unreadable)) and not (tmp_path / "data").exists()

    def test_windows_line_ends_and_a_byte_order_mark_change_nothing(self, tmp_path):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=3)
        librispeech.prepare(tmp_path, tmp_path / "unix", nj=1, parts=["train-clean-100"])
        transcript = folder / "11-7.trans.txt"
        transcript.write_bytes(b"\xef\xbb\xbf" + transcript.read_bytes().replace(b"\n", b"\r\n"))
        librispeech.prepare(tmp_path, tmp_path / "windows", nj=1, parts=["train-clean-100"])
        assert contents(tmp_path / "windows") == contents(tmp_path / "unix")

    def test_more_than_one_in_a_hundred_is_refused(self, tmp_path):
        folder = write_chapter(tmp_path, "train-clean-100", "11", "7", number=100)
        for number in (3, 42):
            (folder / f"11-7-{number:04d}.flac").write_bytes(b"broken")
        with pytest.raises(UserError, match=r"2 of 100 utterances are broken.*11-7-0003.*11-7-0042"):
            librispeech.prepare(tmp_path, tmp_path / "data", nj=1, parts=["train-clean-100"])

    def test_a_speaker_in_two_parts_is_refused(self, corpus_dir, tmp_path):
        write_chapter(corpus_dir, "test-clean", "11", "7")
        with pytest.raises(UserError, match="test-clean and train-clean-100 both hold chapter 7 of the reader 11"):
            librispeech.prepare(corpus_dir, tmp_path, nj=1)

    def test_an_utterance_named_after_another_chapter_is_refused(self, corpus_dir, tmp_path):
        folder = corpus_dir / "LibriSpeech/dev-clean/21/7"
        (folder / "21-7-0000.flac").rename(folder / "x-0000.flac")
        with pytest.raises(UserError, match="x-0000 should be named 21-7-<number>"):
            librispeech.prepare(corpus_dir, tmp_path, nj=1)

    @pytest.mark.skipif(not (REAL / "LibriSpeech").is_dir(), reason=f"no real speech in {REAL} (LIBRISPEECH_REAL)")
    def test_real_speech_is_prepared_whole(self, tmp_path):
        librispeech.prepare(REAL, tmp_path, nj=2)
        for part in librispeech.PARTS:
            flacs = list((REAL / "LibriSpeech" / part).rglob("*.flac"))
            folder = tmp_path / part.replace("-", "_")
            assert set(read_table(folder / "wav.scp")) == set(read_table(folder / "text")) == {f.stem for f in flacs}
            assert all(read_table(folder / "text").values())


def archive(part, files):
    """A small LibriSpeech archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"SPEAKERS.TXT": b";ID\n", **{f"{part}/{name}": files[name] for name in files}}.items():
            info = tarfile.TarInfo(f"LibriSpeech/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


NOISE = np.random.default_rng(0).bytes(300_000)  # gzip cannot shrink it
FILES = {"21/7/21-7-0000.flac": NOISE, "21/7/21-7.trans.txt": b"21-7-0000 WORDS\n"}


class Server(http.server.ThreadingHTTPServer):
    """A file server with HTTP ranges, which can cut its first reply off."""

    def __init__(self):
        self.files, self.ranges, self.cut_after, self.with_ranges = {}, [], None, True
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/12"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        content = self.server.files.get(self.path)
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.with_ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.end_headers()
            return None
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(content[start : len(content) if end is None else end])


@pytest.fixture
def server():
    with Server() as server:
        server.files["/12/dev-clean.tar.gz"] = archive("dev-clean", FILES)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestDownload:
    @staticmethod
    def get(tmp_path, server, checksum=None):
        checksum = checksum or hashlib.md5(server.files["/12/dev-clean.tar.gz"]).hexdigest()
        sizes = {"dev-clean": len(server.files.get("/12/dev-clean.tar.gz", b"")) / 1e9}
        librispeech.download(
            tmp_path, ["dev-clean"], url=server.url, checksums={"dev-clean": checksum}, gigabytes=sizes
        )

    @staticmethod
    def assert_whole(tmp_path):
        expected = {"SPEAKERS.TXT": b";ID\n", "dev-clean/.complete": b""}
        assert contents(tmp_path / "LibriSpeech") == expected | {f"dev-clean/{name}": FILES[name] for name in FILES}

    def test_an_absent_part_is_downloaded_and_nothing_else_stays(self, tmp_path, server):
        self.get(tmp_path / "new", server)
        self.assert_whole(tmp_path / "new")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["LibriSpeech"]

    def test_a_part_that_is_there_is_not_asked_for(self, tmp_path, server):
        (tmp_path / "LibriSpeech" / "dev-clean").mkdir(parents=True)
        self.get(tmp_path, server)
        assert server.ranges == []

    @pytest.mark.parametrize("with_ranges", [True, False])
    def test_a_cut_off_download_goes_on(self, tmp_path, server, with_ranges):
        server.cut_after, server.with_ranges = 100_000, with_ranges
        with pytest.raises(UserError, match="cut off after 100000 of 3[0-9]+ bytes"):
            self.get(tmp_path, server)
        assert not (tmp_path / "LibriSpeech").exists()
        self.get(tmp_path, server)
        assert server.ranges == [None, "bytes=100000-"]
        self.assert_whole(tmp_path)

    def test_a_download_killed_before_unpacking_is_not_repeated(self, tmp_path, server):
        (tmp_path / ".dev-clean.tar.gz.partial").write_bytes(server.files["/12/dev-clean.tar.gz"])
        self.get(tmp_path, server)
        self.assert_whole(tmp_path)

    def test_a_given_archive_is_used_and_stays(self, tmp_path, server):
        (tmp_path / "dev-clean.tar.gz").write_bytes(server.files["/12/dev-clean.tar.gz"])
        self.get(tmp_path, server)
        self.assert_whole(tmp_path)
        assert server.ranges == [] and (tmp_path / "dev-clean.tar.gz").exists()

    def test_a_wrong_checksum_is_refused_and_the_next_run_begins_anew(self, tmp_path, server):
        with pytest.raises(
            UserError, match="dev-clean.tar.gz came with the MD5 sum .*, not 00ff: it is kept as .*wrong"
        ):
            self.get(tmp_path, server, checksum="00ff")
        assert not (tmp_path / "LibriSpeech").exists()
        kept = (tmp_path / "dev-clean.tar.gz.wrong").read_bytes()
        assert kept == server.files["/12/dev-clean.tar.gz"]
        self.get(tmp_path, server)
        assert server.ranges == [None, None]

    def test_a_given_archive_with_a_wrong_checksum_is_refused_and_stays(self, tmp_path, server):
        (tmp_path / "dev-clean.tar.gz").write_bytes(b"something else")
        with pytest.raises(UserError, match="dev-clean.tar.gz has the MD5 sum .*: remove it"):
            self.get(tmp_path, server)
        assert (tmp_path / "dev-clean.tar.gz").exists()

    def test_a_missing_file_or_no_network_is_one_line(self, tmp_path, server):
        server.files.clear()
        with pytest.raises(UserError, match="dev-clean.tar.gz: the server answers 404"):
            self.get(tmp_path, server, "00ff")
        with pytest.raises(UserError, match="^http://127.0.0.1:9/dev-clean.tar.gz: .*refused"):
            librispeech.download(tmp_path, ["dev-clean"], url="http://127.0.0.1:9", gigabytes={"dev-clean": 0.0})

    def test_too_little_space_is_said_before_the_download(self, tmp_path, server, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
        with pytest.raises(UserError, match="1.00kB are free, .* needs"):
            self.get(tmp_path, server)
        assert not server.ranges

    def test_the_space_for_all_parts_is_asked_for_before_the_first(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**11, 9 * 10**10, 10**10))
        # 6.3 + 0.337 + 0.314 + 0.346 + 0.328, and the largest archive beside.
        with pytest.raises(UserError, match=r"10.0GB are free, LibriSpeech's dev-clean.* needs 13.9GB"):
            librispeech.download(tmp_path)

    @pytest.mark.parametrize("name", ["../evil", "/evil", "LibriSpeech/../../evil"])
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE])
    def test_a_member_that_would_land_outside_is_refused(self, tmp_path, server, name, kind):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            member = tarfile.TarInfo("LibriSpeech/dev-clean/link" if kind == tarfile.SYMTYPE else name)
            member.type, member.linkname = kind, f"../../../{name}" if kind == tarfile.SYMTYPE else ""
            tar.addfile(member)
        server.files["/12/dev-clean.tar.gz"] = buffer.getvalue()
        with pytest.raises(UserError, match="cannot be unpacked|does not hold"):
            self.get(tmp_path / "corpus", server)
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
        assert left == ["corpus", "corpus/.dev-clean.tar.gz.partial", "corpus/LibriSpeech"]

    def test_an_archive_of_something_else_is_refused(self, tmp_path, server):
        server.files["/12/dev-clean.tar.gz"] = archive("dev-other", FILES)
        with pytest.raises(UserError, match="does not hold LibriSpeech/dev-clean"):
            self.get(tmp_path, server)
        assert not (tmp_path / "LibriSpeech" / "dev-clean").exists()

    def test_an_unknown_part_is_refused_with_the_known_ones(self, tmp_path):
        with pytest.raises(UserError, match="train-clean-10 is no part .*train-clean-100"):
            librispeech.download(tmp_path, ["train-clean-10"])
