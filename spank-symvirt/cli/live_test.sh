#!/bin/bash
# symvirtctl, symvirt-resume and symvirt-suspend against a real symvirtd, slurmctld and munged:
#
#     tests/slurm/cluster spank-symvirt/cli/live_test.sh FOLDER_OF_SYMVIRTD FOLDER_OF_SYMVIRTCTL
#
# Both hosts are drained, so that the launcher job of a boot stays pending: a transaction that lasts as long as the test needs one.
set -euo pipefail
daemon=$1/symvirtd
tools=$2
dir=$PWD
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
failed=0

fail() {
  echo "FAIL: $*" >&2
  failed=1
}

# expect CODE TEXT COMMAND...: exit code, and TEXT (a regular expression; - for none) in its output
expect() {
  local code=$1 text=$2 rc=0 out
  shift 2
  out=$("$@" 2>&1) || rc=$?
  [ $rc -eq "$code" ] || fail "$*: exit code $rc and not $code: $out"
  [ "$text" = - ] || grep -Eq -- "$text" <<< "$out" || fail "$*: no '$text' in: $out"
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    if [ $SECONDS -ge $end ]; then
      fail "$what: not in time"
      return
    fi
    sleep 0.1
  done
}

# shellcheck disable=SC2317 # called by expect and wait_for
ctl() { timeout 30 "$tools/symvirtctl" -c "$dir/symvirtd.toml" "$@"; }
# shellcheck disable=SC2317
is_outcome() { [ "$(ctl show "$1" --json | jq -r .outcome)" = "$2" ]; }
# shellcheck disable=SC2317
in_phase() { [ "$(ctl show "$1" --json | jq -r .phase)" = "$2" ]; }

mkdir -p /etc/symvirt
mount -t tmpfs tmpfs /etc/symvirt # the power programs look there; the mount namespace is the test's own
ln -s "$dir/symvirtd.toml" /etc/symvirt/symvirtd.toml
echo '<domain><name>@VM@</name></domain>' > "$dir/vm.xml"
printf '#!/bin/sh\nexec sleep 600\n' > "$dir/launcher"
chmod 755 "$dir/launcher"
cat > "$dir/symvirtd.toml" << T
[control]
listen = "0.0.0.0:6820"
journal = "$dir/journal.db"
[hosts]
partition = "hosts"
capacity = false
launcher = "$dir/launcher"
[[class]]
name = "standard"
nodes = "v1"
domain_template = "$dir/vm.xml"
memory_mib = 100
[[class.device]]
slot = "hca0"
gres = "hca"
quiesce = "tcp"
T

start_daemon() {
  "$daemon" -c "$dir/symvirtd.toml" >> "$dir/log/symvirtd.log" 2>&1 &
  daemon_pid=$!
  wait_for 10 "symvirtd answers" ctl status
}

expect 0 'good: 1 VM class' ctl check-config
expect 2 'systemctl status symvirtd' ctl status
expect 2 'BAD  symvirtd answers' ctl doctor
expect 1 'SYMVIRTD_SERVER' "$tools/symvirtctl" -c /nonexistent status

start_daemon
wait_for 10 "slurmctld's nodes are known" bash -c "'$tools/symvirtctl' status --json | jq -e '.hosts | length == 2'"
expect 0 'hv1 +idle +silent' ctl status
expect 0 'hv1 +idle +silent' ctl -s 10.76.0.1 status
expect 0 'hv1 +idle +silent' env SYMVIRTD_SERVER=ctl:6820 "$tools/symvirtctl" status
expect 0 'No transactions' ctl list
expect 7 'BAD  host hv1 answers' ctl doctor
expect 3 'not known' ctl show 99
expect 3 'no VM of ours' ctl evacuate hv1
expect 3 'not a node' ctl evacuate hv9
expect 3 'PERMISSION|not allowed|is for root' setpriv --reuid=nobody --clear-groups "$tools/symvirtctl" -s ctl evacuate hv1
expect 0 'hv1 +idle' setpriv --reuid=nobody --clear-groups "$tools/symvirtctl" -s ctl status

scontrol update NodeName=hv1,hv2 State=DRAIN Reason=test
wait_for 10 "the drain is known" bash -c "'$tools/symvirtctl' status | grep 'hv2 .*test'"

# completes_to "WORDS" COMMAND-LINE-WORD...: what bash offers for the last one
completes_to() {
  local offered
  offered=$(bash -c 'PATH=$1:$PATH; source "$2"; shift 2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _symvirtctl; echo "${COMPREPLY[*]}"' \
    - "$tools" "$here/../../slurm-conf/completions/symvirtctl" symvirtctl "${@:2}")
  [ "$offered" = "$1" ] || fail "completion of '${*:2}': '$offered' and not '$1'"
}
completes_to "evacuate events" e
completes_to "hv1 hv2" evacuate ""
completes_to "v1" migrate v
completes_to "hv2" migrate v1 --to hv2
completes_to "--no-wait" --server ctl : 6820 migrate v1 --no
completes_to "" show ""
completes_to "--json" status --js

# A boot, followed by events and by a watcher that is interrupted.
ctl() { "$tools/symvirtctl" -c "$dir/symvirtd.toml" "$@"; } # no timeout(1) between us and the signals
"$tools/symvirtctl" events --follow --json > "$dir/events" 2> "$dir/events.err" &
follower=$!
sleep 1
expect 0 - "$tools/symvirt-resume" v1
expect 1 'in no' "$tools/symvirt-resume" 'v[7-8]'
wait_for 20 "the boot has its launcher" in_phase 1 acquire
completes_to "1" cancel ""
expect 6 'goes on' ctl show 1 --wait --timeout 1
# A background process of a script ignores SIGINT (POSIX), so Ctrl-C has to come to one that does not.
python3 - "$tools/symvirtctl" "$dir/watch" << 'P' || fail "Ctrl-C while watching"
import signal, subprocess, sys, time
with open(sys.argv[2], "w") as out:
    p = subprocess.Popen([sys.argv[1], "show", "1", "--wait"], stdout=out, stderr=out,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    begun = time.monotonic()
    code = p.wait(10)
assert code == 6, code
assert time.monotonic() - begun < 2
P
grep -q 'transaction 1 goes on' "$dir/watch" || fail "Ctrl-C does not say that the transaction goes on: $(cat "$dir/watch")"
grep -Eq '^[0-9:]+ acquire: v1$' "$dir/watch" || fail "no line for the phase acquire: $(cat "$dir/watch")"
is_outcome 1 running || fail "the boot ended with its watcher"

# On a terminal: one line, refreshed.
timeout 20 script -qec "'$tools/symvirtctl' show 1 --wait --timeout 1" "$dir/terminal" > /dev/null || true
grep -q $'\rboot 1 \\[.*acquire: v1.*\033\\[K' "$dir/terminal" || fail "no refreshing line: $(cat -v "$dir/terminal")"

# symvirtd is killed under a watcher, and under symvirt-suspend.
ctl show 1 --wait > "$dir/watch2" 2>&1 &
watcher=$!
sleep 0.5
kill -9 $daemon_pid
wait $daemon_pid 2> /dev/null || true
"$tools/symvirt-suspend" v1 2> "$dir/suspend" &
suspend=$!
sleep 1.5
start_daemon
rc=0
wait $suspend || rc=$?
[ $rc -eq 0 ] || fail "symvirt-suspend across a restart: $rc: $(cat "$dir/suspend")"
rc=0
wait $watcher || rc=$?
[ $rc -eq 5 ] || fail "watcher across a restart: exit code $rc: $(cat "$dir/watch2")"
grep -q 'answers again' "$dir/watch2" || fail "watcher does not tell of the restart: $(cat "$dir/watch2")"
grep -q '^boot 1: failed' "$dir/watch2" || fail "watcher does not show the end: $(cat "$dir/watch2")"
expect 0 'boot .* failed' ctl list --all
expect 3 'has ended' ctl cancel 1

wait_for 10 "the follower tells of the restart" grep -q '"event":"restarted"' "$dir/events"
wait_for 10 "the follower has the end" grep -q '; ended: failed' "$dir/events"
jq -es 'all(.[]; .schema_version == 1 and (.message | type == "string"))' "$dir/events" > /dev/null ||
  fail "events: not an object a line with a message: $(cat "$dir/events")"
[ "$(grep -c '"event":"begun"' "$dir/events")" -eq 1 ] || fail "an event came twice or not at all: $(cat "$dir/events")"
kill $follower

kill $daemon_pid
wait $daemon_pid || fail "symvirtd does not end well"
[ $failed -eq 0 ] && echo "ok"
exit $failed
