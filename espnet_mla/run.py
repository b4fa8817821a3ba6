"""python -m espnet_mla.run: run a module or a script as `python` would, with the plugin registered.

It registers while it is imported and stays the process's main module, so that a worker that `spawn` starts, which
imports the main module anew, is registered too.
"""

import os
import re
import runpy
import sys
from pathlib import Path

import espnet_mla
from espnet_mla.common import torch_save as whole_files
from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.common.processes import die_with_parent
from espnet_mla.trained import inference

USAGE = "usage: python -m espnet_mla.run -m module [arguments]\n       python -m espnet_mla.run script.py [arguments]"

PROGRAMS = re.compile(r"espnet2\.bin\.\w+")
"""ESPnet's programs, which load models strictly."""
TRAININGS = re.compile(r"espnet2\.bin\.\w+_train(_\w+)?")
"""Those whose files are saved whole, and that name what they can't go on from."""


def prepare(module: str) -> None:
    """Give a program of ESPnet what it has here besides."""
    if PROGRAMS.fullmatch(module):
        from espnet_mla.trained import loading

        loading.install()
    if TRAININGS.fullmatch(module):
        from espnet_mla.trained import resuming

        whole_files.install()
        resuming.install()


espnet_mla.register()
if __name__ == "__mp_main__":  # the process of one of several GPUs, which would go on training and saving
    die_with_parent(os.getppid())
    prepare(sys.argv[0])


def main(arguments: list[str]) -> None:
    """Run what `arguments` name, as the interpreter's command line would.

    Either way sys.modules["__main__"], which `spawn` looks at, stays this module.
    """
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            prepare(module)
            if inference.PROGRAMS.fullmatch(module):
                sys.argv[1:] = inference.take_options(rest)
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        case [script, *rest] if not script.startswith("-"):
            sys.argv = [script, *rest]
            sys.path[0] = str(Path(script).resolve().parent)
            # Not runpy.run_path, which makes the script the main module.
            exec(compile(Path(script).read_bytes(), script, "exec"), {"__name__": "__main__", "__file__": script})
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
