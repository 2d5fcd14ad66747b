#!/bin/bash
# A request that is signed with another key is refused by both daemons, logged, and changes nothing.
# deadline: 90
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# A munged of its own, with another key, in a mount namespace of the control node: what runs in there cannot tell the difference.
stranger() {
  # shellcheck disable=SC2016  # expanded inside
  "$MC" exec ctl unshare -m bash -c '
    mount -t tmpfs tmpfs /run/munge && chown munge:munge /run/munge
    dd if=/dev/urandom of=/run/munge/key bs=128 count=1 status=none; chown munge:munge /run/munge/key; chmod 600 /run/munge/key
    setpriv --reuid=munge --regid=munge --init-groups /usr/sbin/munged --foreground --key-file /run/munge/key \
      --socket /run/munge/munge.socket.2 --pid-file /run/munge/pid --seed-file /run/munge/seed --log-file /run/munge/log >/dev/null 2>&1 &
    munged=$!
    for i in $(seq 100); do [ -S /run/munge/munge.socket.2 ] && break; sleep 0.05; done
    "$@"
    rc=$?
    kill $munged
    exit $rc' stranger "$@"
}
mark=$(log_lines)
assert_refused stranger timeout 20 symvirtctl evacuate hv1
say "symvirtctl: $REFUSAL"
said_since "$mark" "refused:.*[Ii]nvalid credential" || fail "symvirtd did not log the refusal"

noded_log=$MC_DIR/machines/hv1/log/symvirt-noded.out
before=$(grep -c 'refused' "$noded_log" || true)
assert_refused stranger timeout 10 /opt/symvirt/libexec/symvirt/symvirt-launcher --vm v1 --job 1 --noded 10.77.0.11
assert_lt "$before" "$(grep -c 'refused' "$noded_log")" "refusals that noded logged"

# An ordinary user of the cluster may look, and no more.
user symvirtctl status >/dev/null
assert_refused user symvirtctl evacuate hv1
assert_match "may not|not allowed|permission" "${REFUSAL,,}" "words of the refusal"
