# shellcheck shell=bash
# Machines: each is a network, mount, UTS, IPC and PID namespace. Sourced by tests/minicluster.
# Nothing holds a namespace but the processes in it, and all of those are below the PID namespace's first process: killing
# that one is a power cut, and leaves nothing behind. The other machines' PID namespaces lie inside that of the switch, so that
# killing its first process ends the cluster.

machine_dir() { echo "$MC_DIR/machines/$1"; }

# start_time PID: in clock ticks since boot; tells a process from a later one with the same number.
start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) } # the name may hold anything
  cut -d' ' -f20 <<<"$stat"
}

# machine_pid NAME: outside's number of the machine's first process; fails when the machine is off.
machine_pid() {
  local pid started _
  read -r pid started _ 2>/dev/null < "$(machine_dir "$1")/pid" || return 1
  [ "$(start_time "$pid")" = "$started" ] || return 1
  echo "$pid"
}

# in_machine NAME CMD...: as root, in all of the machine's namespaces.
in_machine() {
  local name=$1 pid
  shift
  pid=$(machine_pid "$name") || die "$name: is off; tests/minicluster power-on $name, or up, starts it"
  nsenter -t "$pid" -n -m -u -i -p --wd=/ -- env HOME=/root LANG=C.UTF-8 \
    PATH=/opt/symvirt/bin:/opt/symvirt/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# net NAME CMD...: in the machine's network namespace only (the machine's own file system may not be ready).
net() {
  local pid
  pid=$(machine_pid "$1") || return 1
  shift
  nsenter -t "$pid" -n -- "$@"
}

# start_machine NAME: its first process runs when this returns. It has no network to others yet.
start_machine() {
  local name=$1 d inside=()
  d=$(machine_dir "$name")
  mkdir -p "$d"
  rm -f "$d/pid" "$d/ready"
  [ "$name" = switch ] || inside=(nsenter -t "$(machine_pid switch)" -p --)
  # The lock of the caller must not live on in the machine, nor its terminal.
  setsid "${inside[@]}" unshare --net --mount --uts --ipc --pid --fork --kill-child --propagation private \
    "$MC_DIR/lib/machine-init" "$MC_DIR" "$name" </dev/null >"$d/init.log" 2>&1 {MC_LOCK}>&- &
  disown
  wait_until 10 "machine $name (see $d/init.log)" test -e "$d/ready" || die "$name: did not start: $(tail -n 3 "$d/init.log")"
}

# connect NAME: a bridge for each network on a host (guests are put on it), a plain interface on the control node.
connect() {
  local name=$1 pid address=$2 nic
  pid=$(machine_pid "$name")
  for nic in mgt fab; do
    # A port of a machine whose power was cut goes away with its namespace, a moment later.
    net switch ip link del "$name-$nic" 2>/dev/null || true
    net switch ip link add "$name-$nic" type veth peer name "up-$nic" netns "$pid"
    net switch ip link set "$name-$nic" master "br-$nic" up
    # With an address of its own: else a bridge takes the lowest of its ports', and that was now and then (a random fe:...) the one of a
    # guest's tap, which is the same on the two hosts of a migration: they no longer reached each other.
    net "$name" ip link add "br-$nic" address "$(printf '02:00:00:%s:00:%02x' "$([ $nic = mgt ] && echo 77 || echo 78)" "${address##*.}")" \
      type bridge stp_state 0 forward_delay 0
    net "$name" ip link set "up-$nic" master "br-$nic" up
    net "$name" ip link set "br-$nic" up
  done
  net "$name" ip addr add "$address/24" dev br-mgt
}

start_switch() {
  start_machine switch
  local b
  for b in br-mgt br-fab; do
    net switch ip link add $b type bridge stp_state 0 forward_delay 0
    net switch ip link set $b up
  done
  service switch start bmc {MC_LOCK}>&-
}

address_of() {
  case $1 in
    ctl) echo "$MC_MGT.10" ;;
    hv*) echo "$MC_MGT.$((10 + ${1#hv}))" ;;
    v*) echo "$MC_MGT.$((100 + ${1#v}))" ;;
  esac
}

stop_machine() {
  local pid d
  d=$(machine_dir "$1")
  pid=$(machine_pid "$1") || { rm -f "$d/pid"; return 0; }
  kill -KILL "$pid" 2>/dev/null || true
  # The first process is gone only when every other one of the namespace is.
  wait_until 20 "$1: its processes to end" test ! -e "/proc/$pid" || return 1
  rm -f "$d/pid" "$d/ready"
}

# service NAME start|stop|kill|status SERVICE
service() { in_machine "$1" "$MC_DIR/lib/service" "$2" "$3"; }
