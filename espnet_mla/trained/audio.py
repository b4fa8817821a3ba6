"""An audio file as the samples that a model takes."""

from typing import TYPE_CHECKING

from espnet_mla.common.errors import UserError

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
        UserError: the file is missing or broken, or holds no samples.
    """
    import numpy as np
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="float32", always_2d=True)  # (time, channels)
            if len(samples) != file.frames:
                raise UserError(f"{len(samples)} of {file.frames} samples are there")
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(str(error)) from None
    if not len(samples):
        raise UserError("no samples")
    if not np.isfinite(samples).all():
        raise UserError("samples that are not finite numbers")
    return soxr.resample(samples.mean(axis=1), file.samplerate, rate)
