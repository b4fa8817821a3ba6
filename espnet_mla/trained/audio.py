"""An audio file as the samples that a model takes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def read(path: str, rate: int) -> "np.ndarray":
    """Read an audio file as the samples that a model takes.

    Not by `wavscp.read`: a file may have the name of a command there.

    Args:
        path: of what soundfile reads.
        rate: Hz, of the model.

    Returns:
        (time,), float32 in [-1, 1].

    Raises:
        UserError: the file is missing, broken, cut off or empty; the message names it.
    """
    import soxr

    from espnet_mla.common import audiofile
    from espnet_mla.common.filenames import escaped

    samples, own_rate = audiofile.read(path)
    return audiofile.mono(soxr.resample(samples, own_rate, rate), escaped(path))
