"""The options of ESPnet's decoding that the commands here share."""

DECODING: dict[str, tuple[type, str]] = {
    "beam_size": (int, "hypotheses that the beam search follows"),
    "ctc_weight": (float, "share of CTC in the score, from 0 to 1"),
    "penalty": (float, "added to the score for each token"),
    "maxlenratio": (float, "most tokens for an encoder frame; 0: no limit"),
    "minlenratio": (float, "fewest tokens for an encoder frame"),
}
"""Options of ESPnet's Speech2Text that this command has: name -> type, meaning. Without them ESPnet's defaults hold."""
