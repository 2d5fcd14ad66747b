#!/bin/bash
# The ground the other tests stand on: machines, users, the shared home, power cut and fence.
# deadline: 60
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

assert_eq hv2 "$(on hv2 hostname)"
assert_eq mpiuser "$(user id -un)"
on --user mpiuser ctl bash -c 'echo from ctl > shared'
assert_eq "from ctl" "$(on --user mpiuser hv1 cat /home/mpiuser/shared)"
status=0
on hv1 bash -c 'exit 37' || status=$?
assert_eq 37 "$status" "exit status through exec"
assert_refused on hv9 true
assert_match 'no such machine' "$REFUSAL"

say "power cut of hv3"
on hv3 bash -c 'setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $! > /run/sleeper'
"$MC" power-cut hv3
assert_refused on hv3 true
assert_refused ctl ping -c1 -W1 hv3
"$MC" power-on hv3
assert_refused on hv3 test -e /run/sleeper
wait_for 20 "hv3 back in Slurm" node_is hv3 idle

say "fence, as symvirtd calls it"
ctl "$MC_DIR/lib/fence" hv3
assert_refused on hv3 true
ctl "$MC_DIR/lib/fence" hv3 # off already: success
assert_refused ctl "$MC_DIR/lib/fence" ctl
"$MC" power-on hv3
wait_for 20 "hv3 back in Slurm" node_is hv3 idle
