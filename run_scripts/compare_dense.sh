#!/usr/bin/env bash
# Does RRE earn its place? sigma_tiny against a dense PanGu-α of the same active size, trained on the same tokens in the same order.
# The dense model keeps the embedding slots, so that experts are the only difference.
# Works in the repository, wherever it is started: data/ and runs/ are there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

config=model_configs/sigma_tiny.yaml
dense=(--set name=alpha_tiny --set model.dense_layers=6 --set model.rre_layers=0)

pangu-sigma prepare-data $config
pangu-sigma train $config --run runs/sigma_tiny >/dev/null
pangu-sigma train $config --run runs/alpha_tiny "${dense[@]}" >/dev/null
pangu-sigma report runs/sigma_tiny --against runs/alpha_tiny
