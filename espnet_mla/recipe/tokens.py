"""Stage 5: the list of tokens, from sentencepiece for BPE and from ESPnet's own tokenizer for characters and words."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.common.files import replacing, write_text
from espnet_mla.common.jobs import run_jobs
from espnet_mla.common.tables import read_rows
from espnet_mla.recipe.layout import Layout


def make_token_list(layout: Layout) -> None:
    """Write `layout.token_list`; for BPE also train.txt, bpe.model and bpe.vocab beside it.

    Raises:
        UserError: there is no text, or the text does not allow a vocabulary of `--nbpe`.
    """
    TOKEN_LISTS[layout.settings.token_type](layout)


def _bpe(layout: Layout) -> None:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    settings, bpedir = layout.settings, layout.bpedir
    sentences = [words for path in layout.bpe_train_text for _, words in read_rows(path) if words]
    if not sentences:
        raise UserError(f"--bpe_train_text {' '.join(map(str, layout.bpe_train_text))} holds no text")
    train_text = bpedir / "train.txt"
    write_text(train_text, "".join(f"{words}\n" for words in sentences))

    # In memory: on a full disk sentencepiece leaves half files and says nothing.
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            input=str(train_text),
            vocab_size=settings.nbpe,
            model_type=settings.bpemode,
            model_writer=model,
            character_coverage=settings.bpe_char_cover,
            input_sentence_size=settings.bpe_input_sentence_size,
            user_defined_symbols=unsplit_symbols(layout),
            minloglevel=1,
        )
    except RuntimeError as error:
        raise _vocabulary_error(settings.nbpe, str(error)) from None
    with replacing(bpedir / "bpe.model") as partial:
        partial.write_bytes(model.getvalue())
    processor = SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(number) for number in range(len(processor))]
    scored = (f"{piece}\t{processor.get_score(number):g}\n" for number, piece in enumerate(pieces))
    write_text(bpedir / "bpe.vocab", "".join(scored))

    # The first three pieces are sentencepiece's <unk>, <s>, </s>.
    tokens = [settings.blank, settings.oov, *pieces[3:], settings.sos_eos]
    write_text(layout.token_list, "".join(f"{token}\n" for token in tokens))


def _tokenized(layout: Layout) -> None:
    settings = layout.settings
    with replacing(layout.token_list) as partial:
        command = [
            sys.executable, "-m", "espnet2.bin.tokenize_text",
            "--token_type", settings.token_type,
            "--input", str(layout.data_feats / "lm_train.txt"),
            "--output", str(partial),
            "--non_linguistic_symbols", settings.nlsyms_txt,
            "--field", "2-",
            "--cleaner", settings.cleaner,
            "--g2p", "none",
            "--write_vocabulary", "true",
            "--add_symbol", f"{settings.blank}:0",
            "--add_symbol", f"{settings.oov}:1",
            "--add_symbol", f"{settings.sos_eos}:-1",
        ]  # fmt: skip
        run_jobs([command], [layout.token_list.with_name("tokenize_text.log")], what="making the token list")


TOKEN_LISTS: dict[str, Callable[[Layout], None]] = {"bpe": _bpe, "char": _tokenized, "word": _tokenized}


def unsplit_symbols(layout: Layout) -> list[str]:
    """What `--bpe_nlsyms` names: symbols, or a file of them.

    Raises:
        UsageError: one is given twice, or is a token anyhow.
    """
    settings, symbols = layout.settings, _symbols(layout.settings.bpe_nlsyms)
    tokens = ("<unk>", "<s>", "</s>", settings.blank, settings.oov, settings.sos_eos)  # the first are sentencepiece's
    for number, symbol in enumerate(symbols):
        if symbol in tokens or symbol in symbols[:number]:
            why = "has it among its tokens anyhow" if symbol in tokens else "takes a symbol once only"
            raise UsageError(f"--bpe_nlsyms {settings.bpe_nlsyms}: {symbol} can't be given, as BPE {why}")
    return symbols


def _symbols(given: str) -> list[str]:
    path = Path(given)
    with contextlib.suppress(OSError):
        if given and path.is_file():
            return [line.split()[0] for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [symbol for symbol in given.split(",") if symbol]


def _vocabulary_error(nbpe: int, message: str) -> UserError:
    if largest := re.search(r"too high.*<= (\d+)", message, re.DOTALL):
        return UserError(f"--nbpe {nbpe} is more than the training text allows: at most {largest[1]} is possible")
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(f"--nbpe {nbpe} is less than the characters of the text: at least {smallest[1]} is needed")
    return UserError(f"--nbpe {nbpe}: sentencepiece says: {message}")
