#!/bin/bash
# symvirt-noded by itself, with real libvirtd and QEMU: a VM that symvirtd does not know is started, moved and stopped by hand,
# while libvirtd, noded and the other host fail under it.
# deadline: 150
# shellcheck disable=SC2016  # expanded in the machine
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

vm=t9
overlay=$MC_DIR/vms/$vm.qcow2
conf=$MC_DIR/etc/symvirt/noded.toml
cp "$conf" "$WORK/noded.toml"

# What this test reserved for a VM that no coordinator knows, nobody else would give back.
give_back() {
  for _ in {1..20}; do ! rpc "$1" device.release "$(me)" 5 >/dev/null 2>&1 || return 0; sleep 0.3; done
}
restore() {
  local h
  cat "$WORK/noded.toml" > "$conf"
  for h in hv1 hv2; do
    "$MC" power-on "$h" >/dev/null
    on "$h" virsh -q destroy $vm 2>/dev/null || true
    on "$h" bash -c 'kill -CONT $(cat /run/mc/libvirtd.pid)'
    "$MC" service "$h" restart symvirt-noded
  done
  for h in hv1 hv2; do give_back "$h"; done
  rm -f "$overlay"
}
trap restore EXIT

# The machines have a /tmp of their own, and the build may be below this one's.
RPC_CALL=$MC_DIR/lib/rpc_call
install -m 755 "$BUILD/node-helper/protocol/rpc_call" "$RPC_CALL"
install -m 755 "$E2E/freeze_thread.py" "$MC_DIR/lib/"

# We are the coordinator of these hosts, as far as they can tell: of the generation that they have seen last.
gen=$(for h in hv1 hv2 hv3; do ctl "$RPC_CALL" $h 6821 host.info '{}'; done | jq -s 'map(.generation) | max')
# rpc HOST METHOD JSON [SECONDS]: prints the result; progress and errors go to stderr.
rpc() { ctl "$RPC_CALL" "$1" 6821 "$2" "$(jq -c --argjson gen "$gen" '{gen: $gen} + .' <<<"$3")" "${4:-20}"; }
refused() { # refused CODE HOST METHOD JSON [SECONDS]
  local code=$1 # a pattern
  shift
  assert_refused rpc "$@"
  assert_match "^$code|"$'\n'"$code" "$REFUSAL" "$2"
}
state() { rpc "$1" vm.info "{\"vm\":\"$vm\"}" 5 2>/dev/null | jq -r .state; }
state_is() { [ "$(state "$1")" = "$2" ]; }
ping() { rpc "$1" guest.call "{\"vm\":\"$vm\",\"method\":\"guest.ping\"}" "${2:-20}" | jq -r .boot_id; }
me() { echo "{\"vm\":\"$vm\"}"; }
to() { echo "{\"vm\":\"$vm\",\"to\":\"$1\"}"; }
slots='[{"slot":"ib0","gres":"hca","mac":"52:54:00:78:00:09"}]'

say "only whom the cluster's key vouches for"
ctl bash -c 'mkdir -p -m 711 /run/other && chown munge /run/other && dd if=/dev/urandom of=/run/other/key bs=128 count=1 status=none && chown munge /run/other/key && chmod 400 /run/other/key &&
  setpriv --reuid=munge --regid=munge --init-groups munged --key-file=/run/other/key --socket=/run/other/socket --pid-file=/run/other/pid --log-file=/run/other/log --seed-file=/run/other/seed'
assert_refused ctl env SYMVIRT_MUNGE_SOCKET=/run/other/socket "$RPC_CALL" hv1 6821 host.info '{}' 5
ctl bash -c 'kill $(cat /run/other/pid)'
assert_match 'PERMISSION|Invalid credential' "$REFUSAL"
assert_refused "$MC" exec --user mpiuser ctl "$RPC_CALL" hv1 6821 host.info '{}' 5
assert_match PERMISSION "$REFUSAL"
on hv1 grep -q 'refused:.*uid 2000' /var/log/symvirt-noded.out || fail "the refusal is not in the log"

say "only what a coordinator signs with its generation changes anything"
assert_refused ctl "$RPC_CALL" hv1 6821 vm.stop "{\"vm\":\"$vm\",\"mode\":\"destroy\"}" 5
assert_match 'INVALID_ARGUMENT.*gen' "$REFUSAL"

say "a VM with a device"
base=$(sed -n "s|.*<kernel>\(.*\)/vmlinux</kernel>.*|\1|p" "$MC_DIR/etc/symvirt/classes/standard.xml")/base.qcow2
xml=$(sed -e "s|@VM@|$vm|g; s|@UUID@|77000000-0000-4000-9000-000000000009|; s|@INDEX+100@|109|; s|@INDEX_02X@|09|; s|@OVERLAY@|$overlay|" \
  "$MC_DIR/etc/symvirt/classes/standard.xml")
start=$(jq -cn --arg vm $vm --arg xml "$xml" --arg path "$overlay" --arg base "$base" \
  '{vm: $vm, xml: $xml, overlays: [{path: $path, base: $base, base_format: "qcow2"}]}')
rpc hv1 device.reserve "{\"vm\":\"$vm\",\"slots\":$slots}" >/dev/null
assert_eq running "$(rpc hv1 vm.start "$start" | jq -r .state)"
refused PRECONDITION hv3 vm.start "$start" # its disk is in use: no second copy
boot=$(ping hv1 90)
rpc hv1 guest.call "{\"vm\":\"$vm\",\"method\":\"guest.configure\",\"params\":{\"node\":\"$vm\",\"slots\":[{\"slot\":\"ib0\",\"match\":{\"mac\":\"52:54:00:78:00:09\"},\"addresses\":[\"10.78.0.109/24\"],\"quiesce\":\"tcp\"}]}}" >/dev/null
assert_eq hca0 "$(rpc hv1 device.attach "$(me)" | jq -r '.attached[0].device')"
rpc hv1 guest.call "{\"vm\":\"$vm\",\"method\":\"device.ready\",\"params\":{\"slots\":[\"ib0\"]}}" >/dev/null
refused PRECONDITION hv1 vm.migrate "$(to hv2)"
assert_refused on hv1 virsh migrate --live --p2p --unsafe $vm qemu+tcp://hv2/system # the stand-in is a true blocker

say "daemons of its host come and go"
"$MC" service hv1 kill libvirtd
"$MC" service hv1 start libvirtd
assert_eq "$boot" "$(ping hv1)" "same guest after libvirtd was killed"
"$MC" service hv1 kill symvirt-noded
"$MC" service hv1 start symvirt-noded
wait_for 5 "noded to answer" rpc hv1 host.info '{}'
assert_eq true "$(rpc hv1 vm.info "$(me)" | jq .devices[0].attached)"
assert_eq "$boot" "$(ping hv1)" "same guest after noded was killed"
on hv1 bash -c 'kill -STOP $(cat /run/mc/libvirtd.pid)'
refused DEADLINE hv1 vm.info "$(me)" 1
on hv1 bash -c 'kill -CONT $(cat /run/mc/libvirtd.pid)'
assert_eq running "$(state hv1)"

say "detach, a slow move, and everything that can end it"
assert_eq ib0 "$(rpc hv1 device.detach "$(me)" | jq -r .detached[0])"
sed -i '/^unsafe/a bandwidth_mib_s = 12' "$conf"
for h in hv1 hv2; do "$MC" service $h restart symvirt-noded; done
wait_for 5 "noded to answer" rpc hv1 host.info '{}'
wait_for 5 "noded to answer" rpc hv2 host.info '{}'
moving() { rpc hv1 vm.migrate "$(to hv2)" 40 >"$WORK/move" 2>&1; }
moving & job=$!
wait_for 10 "the VM to be arriving" state_is hv2 incoming
refused PRECONDITION hv2 device.attach "$(me)"
rpc hv1 vm.migrate_abort "$(me)" >/dev/null
wait $job && fail "an aborted move says it succeeded"
assert_match CANCELLED "$(tail -n1 "$WORK/move")"
assert_eq running "$(state hv1)"
wait_for 5 "nothing left on the target" state_is hv2 absent
refused '(CANCELLED|DEADLINE)' hv1 vm.migrate "$(to hv2)" 4 # aborted in time; on a busy machine the answer may be late
wait_for 8 "nothing left on the target" state_is hv2 absent
at_rest() { LOOK=$(rpc hv1 vm.info "$(me)" 5 2>&1); [ "$(jq .migrating <<<"$LOOK")" = false ]; }
for _ in {1..30}; do ! at_rest || break; sleep 0.5; done
if ! at_rest; then # a late abort and the switchover may cross (migration_end.h): what each of them knows of it
  echo "$LOOK"
  on hv1 timeout 10 virsh qemu-monitor-command $vm '{"execute": "query-migrate"}' || true
  on hv1 timeout 10 virsh domjobinfo $vm || true
  tail -n 60 "$MC_DIR/machines/hv1/log/libvirt/libvirtd.log"
fi
wait_for 30 "the end of the aborted move" at_rest
assert_eq running "$(state hv1)"

say "an abort that QEMU hears of in the switchover, when libvirt is waiting for it"
moving & job=$!
wait_for 10 "memory to be sent" grep -q '"done_bytes":[1-9]' "$WORK/move"
on hv1 sh -c "exec $MC_DIR/lib/freeze_thread.py \$(cat /run/libvirt/qemu/$vm.pid) 15" & freezer=$!
sleep 1
on hv1 timeout 30 virsh domjobabort $vm & asked=$!
wait $freezer
wait $asked || fail "virsh domjobabort failed"
sleep 2
at_rest || say "libvirt waits: $(jq -c '{state, migrating}' <<<"$LOOK")"
rpc hv1 vm.migrate_abort "$(me)" >/dev/null
at_rest || fail "the move has not ended: $LOOK"
wait $job && fail "an aborted move says it succeeded"
assert_eq running "$(state hv1)"
assert_eq "$boot" "$(ping hv1)" "same guest after that"

say "noded and the other host end in a move"
moving & job=$!
wait_for 10 "the VM to be arriving" state_is hv2 incoming
"$MC" service hv1 kill symvirt-noded
"$MC" service hv1 start symvirt-noded
wait $job && fail "a move whose noded was killed says it succeeded"
wait_for 5 "a new noded to see the move" bash -c "[ \$($MC exec ctl $RPC_CALL hv1 6821 vm.info '$(me)' 5 | jq .migrating) = true ]"
rpc hv1 vm.migrate_abort "$(me)" >/dev/null
wait_for 5 "nothing left on the target" state_is hv2 absent
moving & job=$!
wait_for 10 "the VM to be arriving" state_is hv2 incoming
"$MC" power-cut hv2
wait $job && fail "a move to a host without power says it succeeded"
assert_eq running "$(state hv1)"
assert_eq "$boot" "$(ping hv1)" "the guest after four moves that failed"
"$MC" power-on hv2

say "aborts at any moment, the switchover among them"
cat "$WORK/noded.toml" > "$conf"
for h in hv1 hv2; do "$MC" service $h restart symvirt-noded; done
wait_for 5 "noded to answer" rpc hv1 host.info '{}'
wait_for 10 "libvirtd of hv2 to answer" bash -c "[ \$($MC exec ctl $RPC_CALL hv2 6821 host.info '{}' 5 | jq .libvirt_ok) = true ]"
here=hv1 there=hv2
for ms in 250 400 550 700 850 950; do
  rpc "$here" vm.migrate "$(to "$there")" 40 >"$WORK/move" 2>&1 & job=$!
  sleep "0.$ms"
  aborted=$(rpc "$here" vm.migrate_abort "$(me)" 20 2>&1) || assert_match PRECONDITION "$aborted"
  if wait $job; then read -r here there <<<"$there $here"; else assert_eq running "$(state "$here")"; fi
  wait_for 5 "nothing left on the other host" state_is "$there" absent
  assert_eq "$boot" "$(ping "$here")" "the guest after an abort at $ms ms"
done
[ "$here" = hv1 ] || rpc "$here" vm.migrate "$(to hv1)" 40 >/dev/null 2>&1

say "and a move that succeeds"
rpc hv2 device.reserve "{\"vm\":\"$vm\",\"slots\":$slots}" >/dev/null
rpc hv1 vm.migrate "$(to hv2)" 40 2>/dev/null | tee "$WORK/stats"
assert_eq absent "$(state hv1)"
rpc hv2 device.attach "$(me)" >/dev/null
link=$(rpc hv2 guest.call "{\"vm\":\"$vm\",\"method\":\"device.ready\",\"params\":{\"slots\":[\"ib0\"]}}")
assert_eq 52:54:00:78:00:09 "$(jq -r .slots[0].mac <<<"$link")"
assert_eq "$boot" "$(ping hv2)" "same guest on the other host"
rpc hv1 device.release "$(me)" >/dev/null
assert_eq free "$(rpc hv1 host.info '{}' | jq -r '.devices[0].state')"
rpc hv1 vm.stop "{\"vm\":\"$vm\",\"mode\":\"destroy\"}" >/dev/null # it is not here: its disk stays
[ -e "$overlay" ] || fail "the disk of a running VM was removed"
rpc hv2 vm.stop "{\"vm\":\"$vm\",\"mode\":\"destroy\"}" >/dev/null
[ ! -e "$overlay" ] || fail "the overlay was left behind"
rpc hv2 device.release "$(me)" >/dev/null
