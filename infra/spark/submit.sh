#!/usr/bin/env bash
# Submit one of courier's Spark jobs, from the archive that `make package` wrote, to any master.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: submit.sh [--master URL] [--archive ZIP] [--dry-run] [--spark-option ...] JOB -- [JOB'S OPTIONS]

  JOB             behavior_sequences, daily_log or item_statistics
  --master URL    local[*] (default), spark://HOST:PORT, yarn, k8s://https://HOST:PORT
  --archive ZIP   courier-*-py-files.zip; default: the newest in dist/ beside the repository's infra/
  --dry-run       print the command, and run nothing
  Any other option before JOB goes to spark-submit: --conf NAME=VALUE, --deploy-mode=cluster, --archives=env.tar.gz#env

  submit.sh --master spark://10.0.0.1:7077 behavior_sequences -- --raw /data/raw --out /data/sequences
  submit.sh --master spark://10.0.0.1:7077 daily_log -- --raw /data/raw --workspace /data/ws --date 2026-03-01

SPARK_SUBMIT names another spark-submit than the one on the PATH. See infra/RUNBOOK.md for what each machine needs.
TEXT
}

die() { echo "submit.sh: $1" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
master='local[*]' archive='' run=() options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) run=(printf '%q '); shift ;;
    --master) master=${2:?submit.sh: --master wants a URL}; shift 2 ;;
    --master=*) master=${1#*=}; shift ;;
    --archive) archive=${2:?submit.sh: --archive wants a file}; shift 2 ;;
    --archive=*) archive=${1#*=}; shift ;;
    --conf) options+=(--conf "${2:?submit.sh: --conf wants NAME=VALUE}"); shift 2 ;;
    --*=*) options+=("$1"); shift ;;
    --*) die "write $1 as $1=VALUE: only so is it clear where the job's name begins" ;;
    *) break ;;
  esac
done
job=${1:-}
[ -n "$job" ] || { usage >&2; exit 2; }
shift
[ "${1:-}" != -- ] || shift
if [ -z "$archive" ]; then
  archive=$(ls -t "$here"/../../dist/courier-*-py-files.zip 2>/dev/null | head -1) || true
fi
[ -f "$archive" ] || die "no archive ${archive:-in dist/}: run \`make package\`, or name one with --archive"

# Spark wants the program itself as a file; all that it imports comes out of the archive.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYSPARK_PYTHON:-python3}" - "$archive" "jobs/spark/$job.py" "$work/$job.py" <<'PY' || die "$archive holds no job $job"
import sys, zipfile
archive, member, program = sys.argv[1:]
try:
    text = zipfile.ZipFile(archive).read(member)
except KeyError:
    sys.exit(1)
open(program, "wb").write(text)
PY
"${run[@]}" "${SPARK_SUBMIT:-spark-submit}" --master "$master" --py-files "$archive" "${options[@]}" "$work/$job.py" "$@"
