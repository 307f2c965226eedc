#!/usr/bin/env bash
# Run one of courier's Beam jobs on any runner; the workers get the wheel that `make package` wrote.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: run.sh [--runner NAME] [--wheel FILE] [--dry-run] [--beam-option=VALUE ...] JOB -- [JOB'S OPTIONS]

  JOB            images.pipeline, sequences.beam.behavior_sequences, sequences.beam.stream, sequences.beam.item_statistics
                 or features.click_stream.program
  --runner NAME  FnApiRunner (default: this process), FlinkRunner, SparkRunner, PortableRunner, DataflowRunner
  --wheel FILE   courier-*.whl; default: the newest in dist/ beside the repository's infra/
  --dry-run      print the command, and run nothing
  Any other option before JOB goes to Beam: --job_endpoint=HOST:PORT, --environment_type=DOCKER

  run.sh --runner PortableRunner --job_endpoint=10.0.0.1:8099 images.pipeline -- --raw /data/raw --out /data/images

PYTHON names the interpreter that has courier[jobs] (default python3). See infra/RUNBOOK.md for what each machine needs.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../options.sh
. "$here/../options.sh"
where=FnApiRunner what=''
take_options --runner --wheel "$@"
set -- "${rest[@]}"
job=$1
shift
[ "${1:-}" != -- ] || shift
if [ "$where" != FnApiRunner ]; then  # in this process there is nobody to send a wheel to
  newest_package 'courier-*.whl' --wheel
  options+=("--extra_package=$what")
fi
"${run[@]}" "${PYTHON:-python3}" -m "jobs.$job" "$@" "--runner=$where" "${options[@]}"
