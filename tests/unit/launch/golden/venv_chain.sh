#!/usr/bin/env bash
# it-s-mine: 1 node, 8 tasks on each. Rendered by nemo_xtoken VERSION; submit it with sbatch.
#SBATCH --job-name=it-s-mine
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --exclusive
#SBATCH --time=1-0
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --chdir='/home/me/o'"'"'neil'
#SBATCH --output='/home/me/o'"'"'neil/runs/slurm/%x-%j.log'
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --kill-on-invalid-dep=yes

set -eo pipefail

module load cuda/12.8

export TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=8
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export CUDA_DEVICE_MAX_CONNECTIONS=1
export TORCH_NCCL_HIGH_PRIORITY=1
# The ranks meet at the first node.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT

# A run that was asked to stop saves a checkpoint and leaves this file; the same command goes on from there.
export NEMO_XTOKEN_STOPPED='/home/me/o'"'"'neil/runs/slurm/.stopped-'"$SLURM_JOB_ID"
rm -f "$NEMO_XTOKEN_STOPPED"
# Cancelled or preempted: the run is asked to stop, and whether it starts again is Slurm's to say.
trap : TERM
at_exit() {
    status=$?
    if [ -e "$NEMO_XTOKEN_STOPPED" ] || [ "$status" = 75 ]; then
        rm -f "$NEMO_XTOKEN_STOPPED"
        status=75
        echo "stopped before the end, with a checkpoint"
    fi
    exit "$status"
}
trap at_exit EXIT

srun --kill-on-bad-exit=1 --wait=0 --export=ALL --label \
    nemo llm distill --yaml 'my run.yaml' 'log.name=it'"'"'s mine'
