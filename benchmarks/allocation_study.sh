#!/bin/sh
# The allocation study, from the repository's root: allocation_study.sh CELL... (make study sets up what it needs).
# Each cell is the demo as it was then, with the settings of one small file, in a folder of its own below study/; those on
# the trained base share the demo's documents and base. Stopped anywhere, it goes on from there.
set -eu
page=docs/studies/allocation
bin=$(dirname "$(command -v snakemake)")

snakemake --profile profiles/demo -- data base
for cell in "$@"; do
  folder=study/$cell
  mkdir -p "$folder/config" "$folder/results"
  # A random base has no corpus whose texts would have to be left out: its documents are its own.
  if [ "$cell" = random_base ]; then
    settings=demo/config/random_base.yaml
  else
    settings=$page/settings/demo.yaml
    ln -sfn "$PWD/demo/data" "$folder/data"
    ln -sfn "$PWD/demo/results/base" "$folder/results/base"
  fi
  cp "$settings" "$folder/config/config.yaml"
  cp "$page/settings/$cell.yaml" "$folder/config/"
  snakemake --profile profiles/demo --directory "$folder" \
    --configfile "$folder/config/config.yaml" "$folder/config/$cell.yaml" -- bounds runs
done
"$bin/python" -m benchmarks.allocation_study study "$page"
"$bin/python" -m benchmarks.gates --jobs 2 --budgets 500 --seeds 3001 3002 3003 3004 3005 3006 3007 3008 \
  --out "$page/gates_fresh.csv"
"$bin/python" -m benchmarks.gates summarize "$page/gates_fresh.csv" > "$page/gates_fresh.txt"
