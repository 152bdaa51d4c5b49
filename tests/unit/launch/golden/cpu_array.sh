#!/usr/bin/env bash
# xtoken-build: 1 node, 1 task on each. Rendered by nemo_xtoken VERSION; submit it with sbatch.
#SBATCH --job-name=xtoken-build
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --array=0-63%8
#SBATCH --chdir=/scratch
#SBATCH --output=/scratch/runs/slurm/%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --mail-type=END

set -eo pipefail

# The ranks meet at the first node.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT

# A run that was asked to stop saves a checkpoint and leaves this file; the same command goes on from there.
export NEMO_XTOKEN_STOPPED=/scratch/runs/slurm/.stopped-"$SLURM_JOB_ID"
rm -f "$NEMO_XTOKEN_STOPPED"
# Cancelled or preempted: the run is asked to stop, and whether it starts again is Slurm's to say.
ended_by_slurm=
trap 'ended_by_slurm=yes' TERM
at_exit() {
    status=$?
    if [ -e "$NEMO_XTOKEN_STOPPED" ] || [ "$status" = 75 ]; then
        rm -f "$NEMO_XTOKEN_STOPPED"
        status=75
        echo "stopped before the end, with a checkpoint"
        [ -n "$ended_by_slurm" ] || scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}
trap at_exit EXIT

srun --kill-on-bad-exit=1 --wait=0 --export=ALL --cpus-per-task=8 --cpu-bind=cores \
    xtoken build 'student=/m/a b' teacher=/m/t
