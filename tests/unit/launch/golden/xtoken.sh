#!/usr/bin/env bash
# xtoken: 1 node, 8 tasks on each. Rendered by nemo_xtoken VERSION; submit it with sbatch.
#SBATCH --job-name=xtoken
#SBATCH --account=research
#SBATCH --partition=batch
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=14
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --chdir=/lustre/me/runs
#SBATCH --output=/lustre/me/runs/runs/slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --export=ALL,HF_TOKEN

set -eo pipefail

export TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=8
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NVTE_FWD_LAYERNORM_SM_MARGIN=16
export NVTE_BWD_LAYERNORM_SM_MARGIN=16
export TORCH_NCCL_HIGH_PRIORITY=1
# Caches outlive the container, and all nodes see them.
export NEMO_XTOKEN_CACHE=${NEMO_XTOKEN_CACHE:-/lustre/me/runs/cache}
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$NEMO_XTOKEN_CACHE/triton}"
export HF_HOME="${HF_HOME:-$NEMO_XTOKEN_CACHE/huggingface}"
# The ranks meet at the first node.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT

# A run that was asked to stop saves a checkpoint and leaves this file; the same command goes on from there.
export NEMO_XTOKEN_STOPPED=/lustre/me/runs/runs/slurm/.stopped-"$SLURM_JOB_ID"
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

srun --kill-on-bad-exit=1 --wait=0 --export=ALL --cpus-per-task=14 --cpu-bind=cores --label \
    --container-image=/lustre/images/nemo_xtoken.sqsh --container-mounts=/lustre/data:/data:ro,/lustre/me/runs:/lustre/me/runs --container-workdir=/lustre/me/runs --no-container-mount-home --container-env=HF_TOKEN,TOKENIZERS_PARALLELISM,OMP_NUM_THREADS,PYTORCH_CUDA_ALLOC_CONF,CUDA_DEVICE_MAX_CONNECTIONS,NVTE_FWD_LAYERNORM_SM_MARGIN,NVTE_BWD_LAYERNORM_SM_MARGIN,TORCH_NCCL_HIGH_PRIORITY,NEMO_XTOKEN_CACHE,TRITON_CACHE_DIR,HF_HOME \
    nemo llm distill --recipe xtoken student=/lustre/hf/llama-1b teacher=/lustre/hf/qwen3-4b 'data.text.paths=["/data/*.parquet"]'
