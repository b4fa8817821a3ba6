"""Audio files recognised by their first bytes, so that none is taken for samples without a header."""

SIGNATURES = {
    b"RIFF": "a WAV file", b"RIFX": "a WAV file", b"RF64": "a WAV file (RF64)", b"riff": "a WAV file (W64)",
    b"fLaC": "a FLAC file", b"OggS": "an Ogg file", b"ID3": "an MP3 file", b"FORM": "an AIFF file",
    b"caff": "a CAF file", b".snd": "an AU file", b"NIST_1A": "a NIST SPHERE file", b"#!AMR": "an AMR file",
    b"\x1aE\xdf\xa3": "a WebM or Matroska file", b"\x30\x26\xb2\x75": "a WMA file",
}  # fmt: skip
LONGEST = 8  # bytes, of what is looked at in all but MP3

# ISO/IEC 11172-3 and 13818-3, layer III: kbit/s by index, and Hz by version and index.
_BIT_RATES = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def bytes_needed(head: bytes) -> int:
    """How many bytes `recognise` needs of a file that begins with `head`."""
    return (_mp3_frame_bytes(head) or 0) + 4 if len(head) >= LONGEST else LONGEST


def recognise(head: bytes) -> str | None:
    """What file these first bytes are of, as "a WAV file"; None for samples without a header."""
    if head[4:8] == b"ftyp":
        return "an MP4 file"
    frame = _mp3_frame_bytes(head)
    # Samples may look like the beginning of a frame, but not of two.
    if frame and head[frame : frame + 2] == head[:2]:
        return "an MP3 file"
    return next((name for signature, name in SIGNATURES.items() if head.startswith(signature)), None)


def _mp3_frame_bytes(head: bytes) -> int | None:
    """How long the MP3 frame is that begins with these bytes; None where none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # eleven bits of synchronisation, and layer III
        return None
    version, bit_rate, rate, padding = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version not in _RATES or not 1 <= bit_rate <= 14 or rate == 3:
        return None
    slots, kind = (144, 1) if version == 3 else (72, 2)
    return slots * 1000 * _BIT_RATES[kind][bit_rate - 1] // _RATES[version][rate] + padding
