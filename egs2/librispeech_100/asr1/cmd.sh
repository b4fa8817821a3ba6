# How ESPnet's asr.sh starts jobs (with ESPNET_ROOT): on this machine, or through a cluster's scheduler.
#   cmd_backend=slurm ./run.sh ...
# What a scheduler is asked for stands in conf/slurm.conf, conf/queue.conf (sge) and conf/pbs.conf: partitions and queues
# have other names on every cluster.
case ${cmd_backend:=local} in
    local) train_cmd=run.pl ;;
    slurm) train_cmd=slurm.pl ;;
    sge) train_cmd=queue.pl ;;
    pbs) train_cmd=pbs.pl ;;
    *)
        echo "error: cmd_backend=${cmd_backend}: valid are local, slurm, sge and pbs" >&2
        return 1
        ;;
esac
export train_cmd cuda_cmd=${train_cmd} decode_cmd=${train_cmd}

# On one machine a process takes the cores that it finds; a scheduler gives a job one, unless the user says otherwise.
if [ "${cmd_backend}" != local ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
