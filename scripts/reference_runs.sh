#!/usr/bin/env bash
# Small twins of the five reference runs, from their own configs: scripts/reference_runs.sh [--shortest] [R1 ... R5]
# Each keeps its config's shape of recipe and takes a small model, its own d_in, fewer tokens and a higher lr. Models
# and texts come from ../shared where they are there, else from the pocket. Results go to $OUT (runs/reference).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${OUT:-runs/reference}"
python="${PYTHON:-.venv/bin/python}"
long=true
if [[ "${1:-}" == --shortest ]]; then long=false; shift; fi

shared="${SHARED:-../shared}"
if [[ -d "$shared/models/stories260K" && -f "$shared/data/gsm8k/train.jsonl" ]]; then
    model="$shared/models/stories260K" data="$shared/data/gsm8k/train.jsonl"
    question="{question}" whole="{question} {answer}"
else
    model=pocket data=pocket question="{prompt}" whole="{prompt}"
fi

# pick FULL SHORT: the value of this form of the twins
pick() { if $long; then echo "$1"; else echo "$2"; fi }

# run R CONFIG KEY=VALUE ...: the twin R of configs/CONFIG.yaml
run() {
    local name=$1 config=$2
    shift 2
    echo "== $name: configs/$config.yaml"
    "$python" -m raysae.sweep "configs/$config.yaml" "name=$name" "runs_dir=$out" "store=$out/stores/$name" \
        records.mlflow=false source.dataset_config=null "$@" --log quiet
}

R1() {
    run R1 gpt2_medium_all_layers "source.model=$model" "source.dataset=$data" "source.text=$whole" \
        source.context_length=128 "source.max_tokens=$(pick 40_000 8_000)" sae.d_sae=320 \
        "source.live=$(pick true false)" "source.layers=$(pick all '[0, 2, 3]')" "training.epochs=$(pick 20 2)" training.lr=0.001 sweep.layer=2 \
        "sweep.configs=$(pick '[{sae.l0_coefficient: 0.3}, {sae.l0_coefficient: 1.0}, {sae.l0_coefficient: 3.0}]' \
            '[{sae.l0_coefficient: 3.0}]')" select.max_l0=200
}

R2() {
    run R2 gpt2_gsm8k_expansions "source.model=$model" "source.dataset=$data" "source.text=$whole" \
        "source.sequences=$(pick 400 100)" "source.context_length=$(pick 128 64)" "source.layers=[2]" sweep.layer=2 \
        "sweep.space.sae.d_sae={choices: [256, 384, 512]}" training.lr=0.001 "training.epochs=$(pick 3 1)"
}

R3() {
    run R3 gpt2_thoughts_topk "source.model=$model" "source.dataset=$data" "source.text=$question" \
        "source.sequences=$(pick 1250 300)" sweep.layer=2 "training.epochs=$(pick 25 2)" \
        "source.layers=$(pick all '[1, 2]')" "source.positions=[$(pick '-6, -5, -4, ' '')-3, -2, -1]" "sweep.configs=[{sae.d_sae: 64, sae.k: 19}, {sae.d_sae: 64, sae.k: 12}, \
            {sae.d_sae: 48, sae.k: 9}, {sae.d_sae: 32, sae.k: 9}, {sae.d_sae: 32, sae.k: 6}, {sae.d_sae: 24, sae.k: 5}, \
            {sae.d_sae: 32, sae.k: 4}, {sae.d_sae: 24, sae.k: 2}]" "select.ev_floor=$(pick 0.6 0.0)"
}

R4() {
    local own problems="dataset: pocket, text: '{prompt}', layers: [2]"
    own="dataset: $data, text: '$question', layers: [2]"
    run R4 four_models "source.sequences=$(pick 300 150)" source.context_length=64 "training.epochs=$(pick 4 1)" \
        training.lr=0.001 "training.batch_size=$(pick 32 128)" \
        "sweep.space.sae.l1_coefficient={choices: [0.0001, 1.0$(pick ', 3.0' '')]}" "models={
            first-texts: {source: {model: $model, $own}, sae: {d_sae: 512}},
            pocket-problems: {source: {model: pocket, $problems}, sae: {d_sae: 1024}}$(pick ",
            first-problems: {source: {model: $model, $problems}, sae: {d_sae: 512}},
            pocket-texts: {source: {model: pocket, $own}, sae: {d_sae: 1024}}" '')}"
}

R5() {
    run R5 gpt2_medium_pile "source.model=$model" "source.dataset=$data" "source.text=$whole" "source.layers=[2]" \
        sweep.layer=2 "source.max_tokens=$(pick 8125 3000)" "sweep.configs=[{sae.d_sae: 128, sae.k: 4}]"
}

for name in "${@:-R1 R2 R3 R4 R5}"; do for one in $name; do "$one"; done; done
exec "$python" scripts/reference_figures.py "$out"
