"""The documents name only what exists: links, options, files, modules, and the options of every attention."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from espnet_mla.attention import ATTENTIONS, POSITIONS, attention_options
from espnet_mla.baselines import __main__ as baselines
from espnet_mla.cli import COMMANDS
from espnet_mla.recipe.options import ABSENT, BY_NAME

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "egs2/librispeech_100/asr1"
ESPNET3_RECIPE = ROOT / "egs3/librispeech_100/esp2_asr"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
RESULTS = [
    ROOT / "benchmarks/RESULTS.md",
    RECIPE / "results/mini/RESULTS.md",
    RECIPE / "results/branchformer_mla_19_minutes.md",
]
PARSERS = {
    "profile": "measure.profile",
    "compare": "measure.compare",
    "convert": "convert.command",
    "distill": "convert.distill_command",
    "transcribe": "trained.transcribe",
    "stream": "streaming.command",
}
"""Command of espnet-mla -> the module whose `_parser()` reads its options."""
OF_RUN_SH = {"--corpus", "--unlink"}  # beside those of asr.sh
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
REPOSITORY_FILE = re.compile(
    r"(?<![\w/])(?:espnet_mla|tests|benchmarks|conf|docs|egs2)/[\w./*-]+\.(?:py|md|yaml|conf|sh)\b"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(path.read_text(encoding="utf-8")) if found == language]


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command in a page: fenced blocks without a language, and `./run... --option` in the text."""
    text = path.read_text(encoding="utf-8")
    lines = [line for body in blocks(path, "") for line in body.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:\./\w+\.sh|espnet-mla|make|python -m) [^`]+)`", FENCE.sub("", text))
    for line in lines:
        for command in re.split(r" \| |; ", re.sub(r"\s+# .*", "", line).strip()):
            if re.match(r"(\w+=\S+ )*(\./|make |espnet-mla |python |\.venv/bin/python )", command):
                yield [word for word in shlex.split(command) if not re.match(r"[A-Za-z_]+=", word)]


def options(words: list[str]) -> set[str]:
    """The options among the words; a value such as "--beam_size 5" is one word with a space."""
    return {word.partition("=")[0] for word in words if word.startswith("--") and " " not in word}


def known_options(words: list[str]) -> set[str] | None:
    """The options that a command takes; None for a program that is not ours."""
    recipe = OF_RUN_SH | {f"--{option}" for option in (*BY_NAME, *ABSENT)} | {"--help"}
    match words:
        case ["espnet-mla", "recipe", *_] | ["./run.sh" | "./asr.sh", *_]:
            return recipe
        case ["espnet-mla", command, *_] if command in PARSERS:
            return set(importlib.import_module(f"espnet_mla.{PARSERS[command]}")._parser()._option_string_actions)
        case ["./run_all_baselines.sh", *_]:
            return set(baselines._parser()._option_string_actions) | recipe
        case ["./setup_environment.sh", *_]:
            return set(re.findall(r"--\w+(?=\))", (ROOT / "setup_environment.sh").read_text()))
    return None


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=name)
def test_every_link_leads_somewhere(page):
    dead = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=name)
def test_every_file_of_the_repository_that_is_named_exists(page):
    if page.name == "CHANGELOG.md":
        pytest.skip("it names what there was")
    found = set(REPOSITORY_FILE.findall(page.read_text(encoding="utf-8")))
    places = (ROOT, ROOT / "tests", RECIPE, ESPNET3_RECIPE)
    assert not [file for file in found if not any(any(place.glob(file)) for place in places)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_of_a_command_exists(page):
    unknown = []
    for words in commands(page):
        known = known_options(words)
        if words[0] == "espnet-mla":
            assert words[1].startswith("-") or words[1] in COMMANDS, words
        if known is not None:
            unknown += [f"{words[:2]}: {option}" for option in options(words) - known]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_program_that_a_command_runs_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    if page.name == "CHANGELOG.md":  # which names what there was, too
        return
    for words in commands(page):
        match words:
            case ["make", *named]:
                assert set(named) <= targets, words
            case [program, "-m", module, *_] if program.endswith("python"):
                assert module == "pytest" or defined(module) is not None, words
            case [program, script, *_] if program.endswith("python"):
                assert (ROOT / script).exists() or (ESPNET3_RECIPE / script).exists(), words
            case [script, *_] if script.startswith("./"):
                assert (ROOT / script).exists() or (RECIPE / script).exists(), words


def test_the_options_in_the_documents_are_found():
    """What the other tests look at is there: a page written in another way would pass them all."""
    given = [words for page in PAGES for words in commands(page)]
    assert {words[1] for words in given if words[0] == "espnet-mla"} >= PARSERS.keys()
    assert {words[0] for words in given} >= {"make", "./run.sh", "./run_all_baselines.sh", "./setup_environment.sh"}
    assert "--kv_lora_rank" in set().union(*map(options, given))


def defined(module: str) -> set[str] | None:
    """The names at the top of a module of this package, read and not imported; None where there is no such module."""
    base = ROOT / module.replace(".", "/")
    path = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)
    if path is None:
        return None
    found = {child.stem for child in base.iterdir()} if base.is_dir() else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_the_documents_compiles_and_uses_names_that_exist(page):
    for source in blocks(page, "python"):
        tree = ast.parse(source)
        compile(tree, name(page), "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "espnet_mla":
                missing = {alias.name for alias in node.names} - (defined(node.module) or set())
                assert not missing, f"{node.module} has no {missing}"
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "espnet_mla":
                assert node.attr in defined("espnet_mla")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_yaml_in_the_documents_can_be_read(page):
    for source in blocks(page, "yaml"):
        conf = yaml.safe_load(source)
        for part in ("encoder_conf", "decoder_conf"):
            for key, kind in conf.get(part, {}).items():
                if key.endswith("attention_layer_type"):
                    of = "attention_conf" if part == "encoder_conf" else key.replace("layer_type", "conf")
                    assert conf[part].get(of, {}).keys() <= attention_options(kind).keys()


def test_the_options_of_every_attention_are_those_of_the_code():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    section = page.split("### Options of each choice")[1].split("\n#")[0]
    documented: dict[str, dict[str, object]] = {}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (?:`(\w+)`)? ?\| ?(\w*) ?\|", section, re.MULTILINE)
    for kinds, option, default in rows:
        for kind in re.findall(r"\w+", kinds):
            of = documented.setdefault(kind, {})
            if option:
                of[option] = yaml.safe_load({"none": "null"}.get(default, default))
    assert documented == {kind: attention_options(kind) for kind in ATTENTIONS}


def test_the_positions_of_every_attention_are_those_of_the_code():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    section = page.split("### Positions")[1].split("\n#")[0]
    _, *rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", section, re.MULTILINE)  # without the head
    documented = {
        position: set(ATTENTIONS) if who == "all" else set(re.findall(r"`(\w+)`", who)) for position, who in rows
    }
    assert documented == {
        position: {kind for kind, attention in ATTENTIONS.items() if position in attention.positions}
        for position in POSITIONS
    }


def test_readme_is_short_and_links_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    linked = set(LINK.findall(text))
    assert {name(page) for page in PAGES if page.name != "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_fit_into_120_columns(page):
    """But for rows of tables, and for links that are longer."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.lstrip().startswith(("|", "!["))]
