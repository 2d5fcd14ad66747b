# shellcheck shell=bash disable=SC2034  # used by the files beside this one
# Names, paths and small helpers of tests/minicluster. Sourced.

# Where a cluster lives. Two clusters with different folders do not meet: all their networks are inside namespaces.
MC_DIR=${SYMVIRT_MINICLUSTER_DIR:-/var/tmp/symvirt-minicluster}
MC_MGT=10.77.0 # management network, /24: ctl .10, hosts .11-.13, VM nodes .101 on
MC_FAB=10.78.0 # the passthrough devices' network: no machine but the VMs has an address there
MC_HOSTS=(hv1 hv2 hv3)
MC_VMS=(v1 v2 v3 v4) # class standard: v1 and v2; rdma: v3 and v4
MC_MACHINES=(switch ctl "${MC_HOSTS[@]}") # switch: the namespace that holds the two bridges

die() {
  echo "minicluster: $*" >&2
  exit 1
}

# One line a step, with the seconds since the start.
step() { printf 'minicluster: %5.1f s  %s\n' "$(since_start)" "$*"; }
since_start() { awk -v a="$MC_START" -v b="$(date +%s.%N)" 'BEGIN {printf "%.1f", b - a}'; }
MC_START=$(date +%s.%N)

need_root() { [ "$(id -u)" -eq 0 ] || die "$1: needs root (namespaces, mounts): run it again with sudo"; }

# Each machine sees its own version of these folders, so a cluster's files cannot be below them.
check_dir() {
  case $MC_DIR in
    /tmp | /tmp/* | /run/* | /dev/* | /home | /home/* | /opt/* | /etc/* | /var/lib/* | /var/log/* | /var/spool/*)
      die "$MC_DIR: machines have their own $(cut -d/ -f1-3 <<<"$MC_DIR"): set SYMVIRT_MINICLUSTER_DIR to a folder elsewhere, such as /var/tmp/NAME" ;;
    /*) ;;
    *) die "SYMVIRT_MINICLUSTER_DIR=$MC_DIR: must be an absolute path" ;;
  esac
}

# wait_until SECONDS WHAT CMD...: polls every 50 ms; says what was awaited when the time is up.
wait_until() {
  local end what=$2
  end=$(($(date +%s%3N) + $1 * 1000))
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s%3N)" -lt "$end" ] || { echo "minicluster: not in time: $what" >&2; return 1; }
    sleep 0.05
  done
}

is_in() { # is_in WORD LIST...
  local word=$1 w
  shift
  for w in "$@"; do [ "$w" != "$word" ] || return 0; done
  return 1
}

# in_parallel FUNCTION ARGUMENT...: one call for each argument, at once; fails when one does.
in_parallel() {
  local function=$1 a pids=() pid failed=0
  shift
  for a in "$@"; do
    "$function" "$a" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}
