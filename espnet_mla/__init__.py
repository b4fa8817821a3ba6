"""MHA, GQA, MLA and linear attention as choices in ESPnet's configuration.

Importing this package is light; `register()` brings in ESPnet.
"""

__version__ = "0.1.0"


def register() -> None:
    """Put the encoders with the choice of an attention behind ESPnet's own names; see `espnet_mla.plugin`."""
    from espnet_mla.plugin import register as register_in_espnet

    register_in_espnet()
