#!/bin/bash
# What would be cut off without having been asked is named, and the move refused. A launcher job that is lost closes its host, and the
# VMs there leave it.
# deadline: 300
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

job=$(submit_ring 60 --symvirt)
wait_ring_running "$job"

# shellcheck disable=SC2016  # expanded in the guest
on v1 bash -c 'setsid bash -c "exec 3<>/dev/tcp/10.78.0.102/22; echo \$\$ >/run/holder; while sleep 1; do :; done" >/dev/null 2>&1 </dev/null &'
wait_for 10 "a connection over the passthrough NIC" on v1 test -s /run/holder
from=$(vm_host v1)
assert_refused ctl timeout 60 symvirtctl migrate v1
say "migrate v1: $REFUSAL"
assert_match "bash \(pid $(on v1 cat /run/holder)\) holds tcp 10\.78\.0\.101" "$REFUSAL" "the refusal"
assert_eq "$from" "$(vm_host v1)" "host of v1"
# shellcheck disable=SC2016  # expanded in the guest
on v1 bash -c 'kill -- -$(cat /run/holder)'

launcher=$(ctl squeue -h -p hosts -w "$from" -o %A | head -n1)
[ -n "$launcher" ] || fail "no launcher job on $from"
say "launcher job $launcher on $from is cancelled by somebody"
ctl scancel "$launcher"
drained_under_job "$from" "$job"
assert_match "^symvirt: launcher job $launcher of v[12] was lost" "$(node_reason "$from")" "reason of $from"
one_copy_each
wait_job_end "$job" 150
check_ring "$job"
undrain "$from"
