#!/usr/bin/env bash
# On demand, as root on Debian: installs Slurm on this machine alone and compares the quick studies' bits,
# local against sbatch, `--cluster slurm` and a LocalCluster. PYTHON: an interpreter with requirements/cluster.txt.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHON=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
export SLURM_CONF=$work/slurm.conf

command -v slurmctld > /dev/null || {
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
}
mkdir -p "$work/state" "$work/spool" "$work/munge"
chown -R munge "$work/munge" && chmod 755 "$work"
dd if=/dev/urandom of="$work/munge/key" bs=1 count=1024 status=none
chown munge "$work/munge/key" && chmod 400 "$work/munge/key"
cat > "$SLURM_CONF" << CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ReturnToService=2
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1100)}' /proc/meminfo) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
CONF
runuser -u munge -- munged --foreground --key-file="$work/munge/key" --socket="$work/munge/socket" \
    --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" &
munge=$!
sleep 1
slurmctld -D > /dev/null 2>&1 & control=$!
slurmd -D > /dev/null 2>&1 & node=$!
trap 'kill $node $control $munge; wait' EXIT
until sinfo -h -o %T | grep -q idle; do sleep 1; done
sinfo

cat > "$work/localcluster.py" << 'PYTHON'
import subprocess, sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster:
        subprocess.run([sys.executable, sys.argv[1], "--preset", "quick", "--out", sys.argv[2],
                        "--cluster", cluster.scheduler_address], check=True)
PYTHON

cd "$root"
studies=${STUDIES:-run_unlearn_mnist.py run_unlearn_xxz.py}
for study in $studies; do
    "$PYTHON" "$study" --preset quick --out "$work/local"
    sbatch --wait --ntasks=2 --time=60 --mem-per-cpu=100M --output="$work/sbatch.log" cluster.sbatch "$study" --preset quick --out "$work/sbatch" || { cat "$work/sbatch.log"; exit 1; }
    DASK_JOBQUEUE__SLURM__MEMORY=500MB "$PYTHON" "$study" --preset quick --out "$work/jobqueue" --cluster slurm --workers 2
    "$PYTHON" "$work/localcluster.py" "$study" "$work/localcluster"
done
"$PYTHON" - "$work"/{local,sbatch,jobqueue,localcluster} << 'PYTHON'
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, ".")
import storage

folders = [Path(folder) for folder in sys.argv[1:]]
reference = {path.name: storage.read_tensors(path)[0] for path in (folders[0] / "jobs").glob("*.safetensors")}
for folder in folders[1:]:
    arrays = 0
    assert {path.name for path in (folder / "jobs").glob("*.safetensors")} == set(reference), folder
    for name, expected in reference.items():
        found = storage.read_tensors(folder / "jobs" / name)[0]
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, strict=True, err_msg=f"{folder.name} {name} {key}")
            arrays += 1
    for path in folders[0].glob("*/*/*.nc"):
        theirs = storage.read_dataset(folder / path.relative_to(folders[0]))
        assert storage.read_dataset(path).drop_attrs().identical(theirs.drop_attrs()), path
    print(f"{folder.name}: {len(reference)} jobs, {arrays} arrays, the same bits as local; the study files as well")
PYTHON
rm -rf "$work"
