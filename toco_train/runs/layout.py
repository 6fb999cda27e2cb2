"""Names of the files and folders of a run."""

from __future__ import annotations

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"
REPORT_FILE = "report.html"
SAMPLES_FOLDER = "samples"
CHECKPOINTS_FOLDER = "checkpoints"
BEST_FOLDER = "best"
BOARD_FOLDER = "tensorboard"
NONFINITE_FOLDER = "nonfinite"
EVALUATION_FOLDER = "evaluation"  # of toco-eval
ANALYSIS_FOLDER = "analysis"  # of toco-analyze
