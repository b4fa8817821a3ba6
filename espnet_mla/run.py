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
from espnet_mla.common.processes import die_with_parent
from espnet_mla.trained import inference

USAGE = "usage: python -m espnet_mla.run -m module [arguments]\n       python -m espnet_mla.run script.py [arguments]"

TRAININGS = re.compile(r"espnet2\.bin\.\w+_train")
"""ESPnet's programs whose files are saved whole."""

espnet_mla.register()
if __name__ == "__mp_main__":  # the process of one of several GPUs, which would go on training and saving
    die_with_parent(os.getppid())
    if TRAININGS.fullmatch(sys.argv[0]):
        whole_files.install()


def main(arguments: list[str]) -> None:
    """Run what `arguments` name, as the interpreter's command line would.

    Either way sys.modules["__main__"], which `spawn` looks at, stays this module.
    """
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            if TRAININGS.fullmatch(module):
                whole_files.install()
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
    main(sys.argv[1:])
