#!/bin/bash
# What goes wrong with verbs in the middle of a move, and what becomes of it: a rank killed while the others come to rest, a rank that does
# not resume, a target whose NIC has no RDMA device.
# deadline: 420
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

VMS=(v3 v4)
RING_NET=
rank_in() { on "$1" pgrep -x ring | head -n1; }
begin() { # begin: a job that iterates, in $job
  job=$(submit_ring 400 --symvirt=rdma)
  wait_ring_running "$job"
}

say "a rank is killed in the middle of a quiesce: the job fails, nothing waits for it, its host is drained"
begin
pid=$(rank_in v3)
on v3 kill -STOP "$pid" # so that the others have to wait for it
mark=$(log_lines)
host=$(vm_host v3)
drain "$host"
wait_for 30 "the quiesce to begin" said_since "$mark" "v3 prepare done"
sleep 1
if said_since "$mark" "v3 quiesce done"; then fail "the job came to rest although a rank was stopped"; fi
on v3 kill -KILL "$pid"
wait_job_end "$job" 60
assert_match 'rc=[1-9]' "$(tail -n1 "$(ring_out "$job")")" "end of job $job after one of its ranks was killed"
wait_for 120 "$host to be drained (is $(node_state "$host"))" node_is "$host" drained
host_is_empty "$host" || fail "$host is drained, but runs $(vms_on "$host")"
undrain "$host"

say "a rank does not resume: it is named, and when it can the job goes on"
begin
pid=$(rank_in v4)
mark=$(log_lines)
host=$(vm_host v4)
drain "$host"
wait_for 60 "the devices to be detached" said_since "$mark" "v4 detach done"
# It is stopped by the plugin now. Who continues it finds it in the hands of a tracer that sleeps.
on v4 bash -c "setsid strace -f -o /dev/null -p $pid >/run/strace.out 2>&1 </dev/null & echo \$! >/run/strace; sleep 0.5; kill -STOP \$(cat /run/strace)"
if said_since "$mark" "v4 resume done"; then fail "the rank was resumed too early"; fi
wait_for 120 "the rank to be named" said_since "$mark" "v4 resume failed.*pid $pid"
# shellcheck disable=SC2016  # expanded in the guest
on v4 bash -c 'kill -KILL $(cat /run/strace)'
drained_under_job "$host" "$job"
job_alive "$job"
one_copy_each
undrain "$host"

say "the NIC on the target has no RDMA device: said, and waited for"
# Takes the name as soon as the old device is gone.
on v3 bash -c 'setsid bash -c "until rdma link add rxe_eth0 type rxe netdev mgmt0; do sleep 0.02; done" >/dev/null 2>&1 </dev/null &'
mark=$(log_lines)
host=$(vm_host v3)
ctl symvirtctl migrate v3 >"$WORK/migrate" 2>&1 & waiting=$!
wait_for 120 "the missing device to be told" said_since "$mark" "v3 link failed.*another RDMA device has the name rxe_eth0"
on v3 rdma link delete rxe_eth0
wait $waiting || fail "migrate v3: $(cat "$WORK/migrate")"
[ "$(vm_host v3)" != "$host" ] || fail "v3 is still on $host"
job_alive "$job"
one_copy_each
ctl scancel "$job"
