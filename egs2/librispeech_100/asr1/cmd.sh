# How ESPnet's asr.sh starts jobs (with ESPNET_ROOT): run.pl on this machine; queue.pl, slurm.pl or ssh.pl elsewhere.
export train_cmd="run.pl"
export cuda_cmd="run.pl"
export decode_cmd="run.pl"
