"""A configuration's keys: ESPnet reads them, with their defaults, off a constructor's signature."""

import inspect


def extended(espnet_class: type, new: dict[str, object]) -> inspect.Signature:
    """The signature of an ESPnet class's constructor, with new keys (key -> default) that it does not have itself."""
    signature = inspect.signature(espnet_class)
    parameters = dict(signature.parameters)
    for key, default in new.items():
        parameters.setdefault(key, inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default))
    return signature.replace(parameters=list(parameters.values()))
