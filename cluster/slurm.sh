#!/usr/bin/env bash
# One sweep on a Slurm allocation: Ray's head on the first node, a worker on each, the sweep submitted as a Ray job.
#   sbatch --nodes=4 cluster/slurm.sh sweeps/robustness.yaml [--retry-failed ...]
# The job may be requeued or sent again at any time: it resumes from the ledger in the study's `storage`, which all nodes must see.
#SBATCH --job-name=llmkt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=llmkt-%j.log
# GPUs: sbatch --gpus-per-node=1 ...
set -euo pipefail
export LLMKT_HOME=${LLMKT_HOME:-$HOME/llmkt} # EDIT: where a study with a relative `storage` leaves its results; all nodes must see it

study=${1:?"usage: sbatch cluster/slurm.sh STUDY.yaml [OPTIONS of llmkt run]"}
shift
job=${SLURM_JOB_ID:?"start this with sbatch"}
cd "${SLURM_SUBMIT_DIR:-$PWD}"
if [[ ! -f $study ]]; then
  echo "there is no study file '$study' in $PWD" >&2
  exit 2
fi
if [[ -n ${LLMKT_VENV:-} ]]; then
  PATH=$LLMKT_VENV/bin:$PATH
elif [[ -d .venv ]]; then
  PATH=$PWD/.venv/bin:$PATH
fi

# A token of this job's own, in a file that only this user can read. The nodes read it by path, so it is in no process
# list; it lies in the home folder, which the nodes share, and not here: this folder goes to the cluster with the job.
umask 077
private=$(mktemp -d "$HOME/.llmkt-slurm-$job.XXXXXX")
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$private/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

# Ports from the job id: two jobs of one user may share a node.
port=$((20000 + job % 4000 * 5))
dashboard=http://127.0.0.1:$((port + 1))
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:?}")
head=${nodes[0]}
head_ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
head_ip=${head_ip%% *}

pids=()
tear_down() {
  status=$?
  trap - EXIT INT TERM
  # srun passes the signal on to the `ray start --block` it started; nothing is ended that this script did not start.
  for pid in "${pids[@]}"; do
    kill -TERM "$pid" 2> /dev/null || true
  done
  wait || true
  rm -rf "$private"
  exit "$status"
}
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start() { # start NODE RAY_START_ARGUMENTS...
  local node=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --block --temp-dir="/tmp/llmkt-$job" --dashboard-agent-listen-port=0 --disable-usage-stats "$@" &
  pids+=($!)
}

# The dashboard listens on the head's loopback only.
start "$head" --head --node-ip-address="$head_ip" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2))

for _ in $(seq 120); do
  if ray job list --address "$dashboard" > /dev/null 2>&1; then
    ready=1
    break
  fi
  kill -0 "${pids[0]}" 2> /dev/null || break
  sleep 1
done
if [[ -z ${ready:-} ]]; then
  echo "Ray's head did not come up on $head; its output is above" >&2
  exit 1
fi
for node in "${nodes[@]:1}"; do
  start "$node" --address="$head_ip:$port" --num-cpus="$cpus" --num-gpus="$gpus"
done

cat << HINT
Ray runs on ${#nodes[@]} nodes. To watch it from your laptop:
  ssh -N -J $USER@LOGIN_NODE -L 8265:127.0.0.1:$((port + 1)) $USER@$head
and open http://127.0.0.1:8265 with the token in $private/token
HINT

# The head answers before it can take a job, so a refused submission is repeated; the id keeps it from being taken twice.
id=slurm-$job-${SLURM_RESTART_COUNT:-0}
for attempt in $(seq 12); do
  if ray job submit --address "$dashboard" --submission-id "$id" --no-wait --working-dir . -- python -m sweeps.run "$study" "$@"; then
    break
  elif [[ $attempt == 12 ]]; then
    echo "the sweep could not be submitted to $dashboard; the reason is above" >&2
    exit 1
  fi
  sleep 5
done
ray job logs --address "$dashboard" --follow "$id" &
pids+=($!)
wait "$!"
python - "$dashboard" "$id" << 'STATUS'
import sys

from ray.job_submission import JobSubmissionClient

status = JobSubmissionClient(sys.argv[1]).get_job_status(sys.argv[2])
print(f"job {sys.argv[2]}: {status}")
sys.exit(status != "SUCCEEDED")
STATUS
