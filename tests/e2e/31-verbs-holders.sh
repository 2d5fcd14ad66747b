#!/bin/bash
# A program outside the job that holds a verbs context would keep the unplug waiting for ever: it is named, the move refused, the job
# left running; and moved when the program has ended. So is what cannot be carried: the process and the reason are said.
# deadline: 300
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

VMS=(v3 v4)
RING_NET=
job=$(submit_ring 300 --symvirt=rdma)
wait_ring_running "$job"
from=$(vm_host v3)

refused() { # refused PATTERN: v3 is not moved, and why is said.
  assert_refused ctl timeout 60 symvirtctl migrate v3
  say "migrate v3: $REFUSAL"
  assert_match "$1" "$REFUSAL" "the refusal"
  assert_eq "$from" "$(vm_host v3)" "host of v3"
  job_alive "$job"
}
# shellcheck disable=SC2016  # expanded in the guest
end_watch() { on v3 bash -c '[ ! -e /run/watch ] || kill $(cat /run/watch); rm -f /run/watch'; }
trap end_watch EXIT
# shellcheck disable=SC2016
on v3 bash -c 'setsid ibv_asyncwatch -d $(ls /sys/class/infiniband) >/run/watch.out 2>&1 </dev/null & echo $! >/run/watch'
holds() { on v3 bash -c 'grep -q event /run/watch.out'; }
wait_for 20 "ibv_asyncwatch to have opened the device" holds
refused "ibv_asyncwatch \(pid $(on v3 cat /run/watch)\) holds a verbs context of rxe_"
end_watch

ctl timeout 120 symvirtctl migrate v3
[ "$from" != "$(vm_host v3)" ] || fail "v3 is still on $from"
job_alive "$job"
one_copy_each
ctl scancel "$job"
