#!/bin/bash
# submit.sh RULE GPUS CPUS MEM_MB MINUTES JOBSCRIPT submits a job and prints only its id.
# The output of the job itself is in logs/, that of the Snakemake process around it in logs/cluster/.
set -euo pipefail
rule=$1 gpus=$2 cpus=$3 mem_mb=$4 minutes=$5 jobscript=$6
mkdir -p logs/cluster

# Names that differ between clusters: change them here.
queue=() # (-q gpu -P my-project)

# LSF:  bsub -J "$rule" -gpu "num=$gpus" -n "$cpus" -M "$mem_mb" -W "$minutes" -oo "logs/cluster/$rule.%J" < "$jobscript" \
#         | sed 's/[^0-9]*\([0-9]*\).*/\1/'
# SGE:  qsub -terse -N "$rule" -cwd -V -l gpu="$gpus" -pe smp "$cpus" -l h_vmem="$((mem_mb / cpus))M" \
#         -l h_rt="$((minutes * 60))" -j y -o logs/cluster "$jobscript"
qsub "${queue[@]}" -N "$rule" -V -j oe -o logs/cluster/ -r y \
  -l "select=1:ngpus=$gpus:ncpus=$cpus:mem=${mem_mb}mb" -l "walltime=$((minutes / 60)):$((minutes % 60)):00" \
  "$jobscript"
