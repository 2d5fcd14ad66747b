# shellcheck shell=bash disable=SC2034  # used by the tests
# For the end-to-end tests: sourced by tests/e2e/NN-*.sh. tests/run gives each test a cluster that is up and at rest, a work folder
# ($WORK) and a deadline (a line "# deadline: SECONDS" in the test).
set -euo pipefail

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MC=$E2E/../minicluster
MC_DIR=${SYMVIRT_MINICLUSTER_DIR:-/var/tmp/symvirt-minicluster}
BUILD=${SYMVIRT_BUILD:-$E2E/../../build}
WORK=${WORK:-$(mktemp -d)}
HOSTS=(hv1 hv2 hv3)
VMS=(v1 v2)
HOME_DIR=$MC_DIR/home/mpiuser # mpiuser's home, as seen from outside

say() { printf '%s  %s\n' "$(date +%T.%3N)" "$*"; }

# fail TEXT: ends the test, saying where.
fail() {
  local i
  for ((i = 1; i < ${#BASH_SOURCE[@]}; i++)); do
    [ "${BASH_SOURCE[i]}" != "${BASH_SOURCE[0]}" ] && break
  done
  echo "FAIL ${BASH_SOURCE[i]:-?}:${BASH_LINENO[i - 1]}: $*" >&2
  exit 1
}

assert_eq() { [ "$1" = "$2" ] || fail "${3:-values differ}: expected '$1', got '$2'"; }
assert_match() { [[ $2 =~ $1 ]] || fail "${3:-no match}: '$2' does not match /$1/"; }
assert_lt() { awk -v a="$1" -v b="$2" 'BEGIN {exit !(a < b)}' || fail "${3:-too large}: $1 is not below $2"; }
# assert_refused CMD...: must fail; its output is in $REFUSAL.
assert_refused() {
  if REFUSAL=$("$@" 2>&1); then fail "not refused: $*: $REFUSAL"; fi
}

# wait_for SECONDS WHAT CMD...: until the command succeeds. Polls 10 times a second.
wait_for() {
  local seconds=$1 what=$2 end
  shift 2
  end=$(($(date +%s%3N) + seconds * 1000))
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s%3N)" -lt "$end" ] || fail "after $seconds s still not: $what"
    sleep 0.1
  done
}

on() { "$MC" exec "$@"; } # on MACHINE CMD...
ctl() { "$MC" exec ctl "$@"; }
user() { "$MC" exec --user mpiuser ctl "$@"; } # as the ordinary user on the control node, in its home

# ---- Slurm

job_field() { ctl scontrol -o show job "$1" | grep -oE "(^| )$2=[^ ]*" | head -n1 | cut -d= -f2-; }
job_state() { job_field "$1" JobState; }
job_is() { [ "$(job_state "$1")" = "$2" ]; }
job_ended() { [[ $(job_state "$1") =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY|BOOT_FAIL)$ ]]; }
wait_job_end() { wait_for "$2" "job $1 to end (is $(job_state "$1"))" job_ended "$1"; } # ID SECONDS
node_state() { ctl sinfo -h -n "$1" -N -o %T | head -n1; }
node_is() { [ "$(node_state "$1")" = "$2" ]; }
node_reason() { ctl scontrol -o show node "$1" | sed -n 's/.* Reason=\(.*\) \[.*/\1/p'; }
drain() { ctl scontrol update nodename="$1" state=drain reason="${2:-test}"; }
undrain() { ctl scontrol update nodename="$1" state=resume; }

# ---- VMs

# vm_host VM: the host its domain runs on (not one it is only arriving at); empty when it runs nowhere.
vm_host() {
  local h
  for h in "${HOSTS[@]}"; do
    if [ "$(on "$h" timeout 10 virsh -q domstate "$1" 2>/dev/null | head -n1)" = running ]; then echo "$h"; return; fi
  done
}
# other_hosts HOST...: the hosts not named.
other_hosts() {
  local h
  for h in "${HOSTS[@]}"; do [[ " $* " == *" $h "* ]] || echo "$h"; done
}
# fabric_counter VM: bytes through its passthrough NIC (both ways), 0 when there is none.
fabric_counter() {
  # shellcheck disable=SC2016  # expanded in the guest
  on "$1" bash -c 'for n in /sys/class/net/*; do d=$(readlink $n/device/driver); case ${d##*/} in e1000e|igb*) a=$(<$n/statistics/rx_bytes); b=$(<$n/statistics/tx_bytes); echo $((a + b)); exit;; esac; done; echo 0'
}

# ---- the MPI job (ring.c)

# submit_ring SECONDS [sbatch options]: prints the job's number. Output: ~/NAME-ID.out and ~/NAME-ID.json, NAME from $RING_NAME (ring).
# Two nodes, two ranks each, unless the options say otherwise. The program itself checks answers and path (--net).
submit_ring() {
  local seconds=$1 name=${RING_NAME:-ring}
  shift
  install -o 2000 -g 2000 -m 755 "$BUILD/tests/e2e/ring" "$HOME_DIR/ring"
  cat > "$HOME_DIR/$name.sh" <<S
#!/bin/bash
srun --mpi=pmix ./ring --seconds $seconds --net ${RING_NET:-10.78.} --json $name-\$SLURM_JOB_ID.json --report 1 ${RING_OPTIONS:-}
echo "rc=\$?"
S
  user sbatch --parsable -N2 -n4 --ntasks-per-node=2 -J "$name" -o "$name-%j.out" "$@" "$name.sh"
}
ring_out() { echo "$HOME_DIR/${RING_NAME:-ring}-$1.out"; }
ring_running() { grep -q '^at .* iteration' "$(ring_out "$1")"; }
ring_progress() { sed -n 's/^at .*: iteration \([0-9]*\),.*/\1/p' "$(ring_out "$1")" | tail -n1; }
# wait_ring_running ID [SECONDS]: ranks exchange messages.
wait_ring_running() { wait_for "${2:-120}" "job $1 to iterate (is $(job_state "$1"))" ring_running "$1"; }
# ring_field ID FIELD: from the job's JSON result.
ring_field() { jq -r ".$2" "$HOME_DIR/${RING_NAME:-ring}-$1.json"; }
# check_ring ID: ended COMPLETED 0:0, all answers right on all ranks, messages over the passthrough network. Prints the pause.
check_ring() {
  local out
  out=$(ring_out "$1")
  assert_eq COMPLETED "$(job_state "$1")" "job $1 ($out)"
  assert_eq 0:0 "$(job_field "$1" ExitCode)" "job $1"
  assert_eq true "$(ring_field "$1" answers_correct)" "answers of job $1"
  assert_eq "$(ring_field "$1" ranks)" "$(grep -c '^rank .* ok ' "$out")" "ranks that report ok"
  [ "${RING_NET:-10.78.}" = "" ] || assert_lt 0 "$(ring_field "$1" sockets_on_net)" "sockets over the passthrough network"
  say "job $1: $(ring_field "$1" iterations) iterations, longest pause $(ring_field "$1" longest_pause_s) s"
}

# ---- evacuations

symvirtd_log() { echo "$MC_DIR/machines/ctl/log/symvirtd.out"; }
log_lines() { wc -l < "$(symvirtd_log)"; }
# said_since LINE PATTERN: symvirtd's log has it after that line.
said_since() { tail -n "+$(($1 + 1))" "$(symvirtd_log)" | grep -qE "$2"; }
# vms_on HOST: names of the VMs whose domain runs there.
vms_on() { on "$1" timeout 10 virsh -q list --name 2>/dev/null | sort | xargs; }
host_is_empty() { [ -z "$(vms_on "$1")" ]; }
# one_copy_each: every VM runs on exactly one host.
one_copy_each() {
  local vm
  for vm in "${VMS[@]}"; do
    assert_eq 1 "$(for h in "${HOSTS[@]}"; do vms_on "$h"; done | tr ' ' '\n' | grep -cx "$vm")" "running copies of $vm"
  done
}
# job_alive ID: still running, and iterating: two looks differ.
job_alive() {
  local before
  assert_eq RUNNING "$(job_state "$1")" "job $1"
  before=$(ring_progress "$1")
  wait_for 60 "job $1 to go on after iteration $before" ring_is_beyond "$1" "$before"
}
ring_is_beyond() { [ "$(ring_progress "$1")" -gt "$2" ]; }
# drained_under_job HOST ID: the host is DRAINED and empty while the job runs on.
drained_under_job() {
  wait_for 120 "$1 to be drained (is $(node_state "$1"))" node_is "$1" drained
  assert_eq RUNNING "$(job_state "$2")" "job $2 when $1 was drained"
  host_is_empty "$1" || fail "$1 is drained, but runs $(vms_on "$1")"
  say "$1 is drained and empty"
}
