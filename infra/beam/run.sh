#!/usr/bin/env bash
# Run one of courier's Beam jobs on any runner; the workers get the wheel that `make package` wrote.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: run.sh [--runner NAME] [--wheel FILE] [--dry-run] [--beam-option=VALUE ...] JOB -- [JOB'S OPTIONS]

  JOB            image_references, behavior_sequences, sequence_stream, item_statistics or click_stream
  --runner NAME  FnApiRunner (default: this process), FlinkRunner, SparkRunner, PortableRunner, DataflowRunner
  --wheel FILE   courier-*.whl; default: the newest in dist/ beside the repository's infra/
  --dry-run      print the command, and run nothing
  Any other option before JOB goes to Beam: --job_endpoint=HOST:PORT, --environment_type=DOCKER

  run.sh --runner PortableRunner --job_endpoint=10.0.0.1:8099 image_references -- --raw /data/raw --out /data/images

PYTHON names the interpreter that has courier[jobs] (default python3). See infra/RUNBOOK.md for what each machine needs.
TEXT
}

die() { echo "run.sh: $1" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runner=FnApiRunner wheel='' run=() options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) run=(printf '%q '); shift ;;
    --runner) runner=${2:?run.sh: --runner wants a name}; shift 2 ;;
    --runner=*) runner=${1#*=}; shift ;;
    --wheel) wheel=${2:?run.sh: --wheel wants a file}; shift 2 ;;
    --wheel=*) wheel=${1#*=}; shift ;;
    --*=*) options+=("$1"); shift ;;
    --*) die "write $1 as $1=VALUE: only so is it clear where the job's name begins" ;;
    *) break ;;
  esac
done
job=${1:-}
[ -n "$job" ] || { usage >&2; exit 2; }
shift
[ "${1:-}" != -- ] || shift
if [ "$runner" != FnApiRunner ]; then  # in this process there is nobody to send a wheel to
  if [ -z "$wheel" ]; then
    wheel=$(ls -t "$here"/../../dist/courier-*.whl 2>/dev/null | head -1) || true
  fi
  [ -f "$wheel" ] || die "no wheel ${wheel:-in dist/}: run \`make package\`, or name one with --wheel"
  options+=("--extra_package=$wheel")
fi
"${run[@]}" "${PYTHON:-python3}" -m "jobs.beam.$job" "$@" "--runner=$runner" "${options[@]}"
