"""python run.py --stages ...: ESPnet3's stages, in which the attentions are choices."""

import copy

from espnet3.systems.esp2_asr.system import ASRSystem
from espnet3.systems.launch import launch

import espnet_mla

espnet_mla.register()  # here, for the processes of other GPUs and of Dask import this file, but do not run it


class System(ASRSystem):
    """ESPnet3's, whose `collect_stats` would take `normalize` from the `train` of the same command (ESPnet 202611)."""

    def collect_stats(self):
        """Collect statistics; the configuration stays what it is."""
        training_config = copy.deepcopy(self.training_config)
        try:
            super().collect_stats()
        finally:
            self.training_config = training_config


if __name__ == "__main__":
    launch(System, conf_package="egs3.TEMPLATE.esp2_asr")
