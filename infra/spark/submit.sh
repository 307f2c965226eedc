#!/usr/bin/env bash
# Submit one of courier's Spark jobs, from the archive that `make package` wrote, to any master.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: submit.sh [--master URL] [--archive ZIP] [--dry-run] [--spark-option ...] JOB -- [JOB'S OPTIONS]

  JOB             sequences.spark.behavior_sequences, sequences.daily.build or sequences.spark.item_statistics
  --master URL    local[*] (default), spark://HOST:PORT, yarn, k8s://https://HOST:PORT
  --archive ZIP   courier-*-py-files.zip; default: the newest in dist/ beside the repository's infra/
  --dry-run       print the command, and run nothing
  Any other option before JOB goes to spark-submit: --conf NAME=VALUE, --deploy-mode=cluster, --archives=env.tar.gz#env

  submit.sh --master spark://10.0.0.1:7077 sequences.spark.behavior_sequences -- --raw /data/raw --out /data/sequences
  submit.sh --master spark://10.0.0.1:7077 sequences.daily.build -- --raw /data/raw --workspace /data/ws --date 2026-03-01

SPARK_SUBMIT names another spark-submit than the one on the PATH. See infra/RUNBOOK.md for what each machine needs.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../options.sh
. "$here/../options.sh"
where='local[*]' what=''
take_options --master --archive "$@"
set -- "${rest[@]}"
job=$1
shift
[ "${1:-}" != -- ] || shift
newest_package 'courier-*-py-files.zip' --archive

# Spark wants the program itself as a file; all that it imports comes out of the archive.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYSPARK_PYTHON:-python3}" - "$what" "jobs/${job//.//}.py" "$work/job.py" <<'PY' || die "$what holds no job $job"
import sys, zipfile
archive, member, program = sys.argv[1:]
try:
    text = zipfile.ZipFile(archive).read(member)
except KeyError:
    sys.exit(1)
open(program, "wb").write(text)
PY
"${run[@]}" "${SPARK_SUBMIT:-spark-submit}" --master "$where" --py-files "$what" "${options[@]}" "$work/job.py" "$@"
