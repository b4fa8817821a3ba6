"""python -m espnet_mla.run run.py --stages ...: ESPnet3's stages, in which the attentions are choices."""

from espnet3.systems.esp2_asr.system import ASRSystem
from espnet3.systems.launch import launch

if __name__ == "__main__":
    launch(ASRSystem)
