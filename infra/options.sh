# The options that submit.sh and run.sh have in common; read by them, not run.

die() { echo "$(basename "$0"): $1" >&2; exit 2; }

# take_options WHERE WHAT "$@": reads what stands before the job's name. WHERE is the flag that says where to run, WHAT
# the one that names the package. Sets where, what, run (how to begin the command), options (to hand on), rest (the job
# and what follows it).
take_options() {
  local where_flag=$1 what_flag=$2
  shift 2
  run=() options=()
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --dry-run) run=(printf '%q '); shift ;;
      "$where_flag") [ $# -gt 1 ] || die "$1 wants a value"; where=$2; shift 2 ;;
      "$where_flag="*) where=${1#*=}; shift ;;
      "$what_flag") [ $# -gt 1 ] || die "$1 wants a file"; what=$2; shift 2 ;;
      "$what_flag="*) what=${1#*=}; shift ;;
      --conf) [ $# -gt 1 ] || die "$1 wants NAME=VALUE"; options+=(--conf "$2"); shift 2 ;;
      --*=*) options+=("$1"); shift ;;
      --*) die "write $1 as $1=VALUE: only so is it clear where the job's name begins" ;;
      *) break ;;
    esac
  done
  [ $# -gt 0 ] || { usage >&2; exit 2; }
  rest=("$@")
}

# newest_package GLOB FLAG: sets what, unless it was named, to the newest such file in dist/ beside infra/.
newest_package() {
  if [ -z "$what" ]; then
    # shellcheck disable=SC2086  # the glob is to be expanded
    what=$(ls -t "$here"/../../dist/$1 2>/dev/null | head -1) || true
  fi
  [ -f "$what" ] || die "no package ${what:-in dist/}: run \`make package\`, or name one with $2"
}
