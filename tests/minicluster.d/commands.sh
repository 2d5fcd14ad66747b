# shellcheck shell=bash
# The commands of tests/minicluster. Sourced.

# One change at a time. The lock's descriptor is closed in everything that lives on.
lock() {
  mkdir -p "$MC_DIR"
  exec {MC_LOCK}>"$MC_DIR/lock"
  flock -w 60 "$MC_LOCK" || die "$MC_DIR/lock: another up or down has been at work for a minute: wait for it"
}

cmd_up() {
  local build=$MC_SOURCE/build
  while [ $# -gt 0 ]; do
    case $1 in
      --build) build=${2:?--build needs a folder}; shift 2 ;;
      *) die "up: $1: not an option; tests/minicluster --help" ;;
    esac
  done
  "$MC_SOURCE/tests/install-deps"
  lock
  mkdir -p "$MC_DIR"/{etc,home,vms,opt,machines,lib}
  echo "$MC_SOURCE" > "$MC_DIR/source"
  if MC_IMAGE=$("$MC_SOURCE/tests/image/build" --path-only) && [ -e "$MC_IMAGE/complete" ]; then
    step "guest image $MC_IMAGE (cached)"
  else
    step "guest image: building $MC_IMAGE (about a minute, once)"
    MC_IMAGE=$("$MC_SOURCE/tests/image/build" 2>"$MC_DIR/image.log") || die "guest image: $(tail -n 3 "$MC_DIR/image.log"); see $MC_DIR/image.log"
  fi
  MC_DOMAIN_TYPE=$(probe_domain_type "$MC_IMAGE")
  step "guests run under $(if [ "$MC_DOMAIN_TYPE" = kvm ]; then echo KVM; else echo "TCG (no working KVM here)"; fi)"
  configure "$build"
  power_all
  wait_for_services
  step "up: $(in_machine ctl sinfo -h -o '%P %D %T' | tr '\n' ';')"
}

# Everything under etc/, opt/ and lib/, and the site disk.
configure() {
  local h
  install -m755 "$MC_SOURCE/tests/minicluster.d/machine-init" "$MC_SOURCE/tests/minicluster.d"/{service,bmc,fence} "$MC_DIR/lib/"
  install_build "$1"
  write_common
  write_slurm
  write_symvirt
  for h in "${MC_HOSTS[@]}"; do write_libvirt "$h"; done
  write_site_disk
  step "configuration and site disk written"
}

# The build is installed as packages would, below a folder that every machine sees as /opt/symvirt.
install_build() {
  if [ "$1" = none ] || [ ! -e "$1/cmake_install.cmake" ]; then
    step "no build ($1): a plain Slurm cluster comes up"
    return 0
  fi
  cmake --install "$1" --prefix "$MC_DIR/opt" >"$MC_DIR/install.log" 2>&1 || die "cmake --install $1: $(tail -n 3 "$MC_DIR/install.log")"
  step "installed $1"
}

power_all() {
  machine_pid switch >/dev/null || start_switch
  in_parallel power_one ctl "${MC_HOSTS[@]}"
  step "machines and services started: switch ctl ${MC_HOSTS[*]}"
}

# power_one MACHINE: on, connected, services running; what is so already stays.
power_one() {
  if ! machine_pid "$1" >/dev/null; then
    start_machine "$1"
    connect "$1" "$(address_of "$1")"
  fi
  start_services "$1"
}

# In order; each goes on by itself when those before it are up.
services_of() {
  case $1 in
    switch) echo bmc ;;
    ctl) echo munged ganesha slurmctld symvirtd ;;
    hv*) echo munged libvirtd slurmd symvirt-noded ;;
  esac
}

# Those of this build.
present() {
  case $1 in
    symvirt*) [ -x "$MC_DIR/opt/sbin/$1" ] ;;
  esac
}

start_services() {
  local m=$1 s script=
  for s in $(services_of "$m"); do
    present "$s" || continue
    script+="$MC_DIR/lib/service start $s || exit; "
    # Slurm's daemons give up when they cannot reach munged at once.
    # shellcheck disable=SC2016  # expanded in the machine
    [ "$s" != munged ] || script+='for i in $(seq 200); do [ -S /run/munge/munge.socket.2 ] && break; sleep 0.02; done; '
  done
  in_machine "$m" bash -c "$script" {MC_LOCK}>&- || die "$m: a service did not start: see $(machine_dir "$m")/log"
}

wait_for_services() {
  local h
  wait_until 30 "slurmctld to answer (log: $MC_DIR/machines/ctl/log/slurm/slurmctld.log)" in_machine ctl scontrol ping || exit 1
  step "slurmctld answers"
  for h in "${MC_HOSTS[@]}"; do
    wait_until 30 "$h: libvirtd to answer (log: $MC_DIR/machines/$h/log/libvirt/libvirtd.log)" in_machine "$h" virsh -q list || exit 1
    wait_until 30 "$h: slurmd to register (log: $MC_DIR/machines/$h/log/slurm/slurmd.log)" host_is_up "$h" || exit 1
  done
  wait_until 20 "the NFS server (log: $MC_DIR/machines/ctl/log/ganesha/ganesha.log)" in_machine ctl bash -c "exec 3<>/dev/tcp/$MC_MGT.10/2049" || exit 1
  step "hosts registered, libvirtd and the NFS server answer"
}

host_is_up() { in_machine ctl sinfo -h -n "$1" -o %T | grep -qE '^(idle|mixed|allocated|drained|draining)$'; }

cmd_exec() {
  local user=root machine
  if [ "${1:-}" = --user ]; then
    user=${2:?--user needs a name}
    shift 2
  fi
  [ $# -ge 2 ] || die "exec: needs a machine and a command: exec [--user USER] MACHINE COMMAND..."
  machine=$1
  shift
  if [ "$user" != root ]; then set -- runuser -u "$user" -- env "HOME=/home/$user" bash -c 'cd && exec "$@"' bash "$@"; fi
  if is_in "$machine" ctl "${MC_HOSTS[@]}"; then
    in_machine "$machine" "$@"
  elif is_in "$machine" "${MC_VMS[@]}"; then
    guest_ssh "$machine" "$@"
  else
    die "exec: $machine: no such machine; there are ctl ${MC_HOSTS[*]} ${MC_VMS[*]}"
  fi
}

cmd_service() {
  [ $# -eq 3 ] || die "service: needs MACHINE start|stop|kill|restart|status NAME"
  is_in "$1" ctl "${MC_HOSTS[@]}" || die "service: $1: no such machine; there are ctl ${MC_HOSTS[*]}"
  service "$1" "$2" "$3"
}

cmd_power_cut() {
  is_in "${1:-}" ctl "${MC_HOSTS[@]}" || die "power-cut: ${1:-}: no such host; there are ${MC_HOSTS[*]} (and ctl)"
  stop_machine "$1"
}

cmd_power_on() {
  is_in "${1:-}" ctl "${MC_HOSTS[@]}" || die "power-on: ${1:-}: no such host; there are ${MC_HOSTS[*]} (and ctl)"
  machine_pid switch >/dev/null || die "power-on: the cluster is not up: tests/minicluster up"
  lock
  power_one "$1"
}

# Puts the cluster at rest for the next test: machines on, services running, no job of a user, every node usable. VMs that run
# stay, since booting one takes a while; --vms powers them down, too.
cmd_reset() {
  local vms=no m
  case ${1:-} in
    '') ;;
    --vms) vms=yes ;;
    *) die "reset: $1: not an option; tests/minicluster --help" ;;
  esac
  machine_pid switch >/dev/null || die "reset: the cluster is not up: tests/minicluster up"
  lock
  in_parallel power_one ctl "${MC_HOSTS[@]}" || die "reset: a machine does not start"
  in_machine ctl scancel -u mpiuser
  wait_until 60 "the user's jobs to end" no_user_jobs || exit 1
  for m in "${MC_HOSTS[@]}"; do
    in_machine ctl scontrol update nodename="$m" state=resume 2>/dev/null || true # it says so when there is nothing to resume
  done
  for m in "${MC_VMS[@]}"; do
    [ $vms = no ] || in_machine ctl scontrol update nodename="$m" state=power_down_force 2>/dev/null || true
  done
  for m in "${MC_VMS[@]}"; do
    wait_until 90 "$m to be off or on" vm_is_settled "$m" || exit 1
    # Resuming a node that needs none would tell Slurm that a node without a VM is up.
    ! vm_needs_resume "$m" || in_machine ctl scontrol update nodename="$m" state=resume 2>/dev/null || true
  done
  for m in "${MC_HOSTS[@]}"; do wait_until 60 "$m to be usable" host_is_usable "$m" || exit 1; done
}
vm_is_settled() { ! in_machine ctl scontrol -o show node "$1" | grep -qE 'State=[^ ]*(POWERING_|POWER_DOWN|COMPLETING)'; }
vm_needs_resume() { in_machine ctl scontrol -o show node "$1" | grep -qE 'State=[^ ]*(DRAIN|DOWN(\+| |\*))'; }
no_user_jobs() { [ -z "$(in_machine ctl squeue -h -u mpiuser -o %i)" ]; }
host_is_usable() { in_machine ctl sinfo -h -n "$1" -o %T | grep -qE '^(idle|mixed|allocated)$'; }

cmd_logs() { echo "$MC_DIR/machines"; }

# vms_of HOST: names of the domains that run there (an arriving one is paused, and is not counted).
vms_of() { in_machine "$1" timeout 5 virsh -q list --state-running --name 2>/dev/null | xargs; }

cmd_status() {
  case ${1:-} in
    '') ;;
    --json) status_json; return ;;
    *) die "status: $1: not an option; tests/minicluster --help" ;;
  esac
  local m s
  for m in "${MC_MACHINES[@]}"; do
    if ! machine_pid "$m" >/dev/null; then
      printf '%-8s off\n' "$m"
      continue
    fi
    printf '%-8s on  ' "$m"
    for s in $(services_of "$m"); do
      present "$s" || continue
      printf ' %s:%s' "$s" "$(service "$m" status "$s" || true)"
    done
    [[ $m != hv* ]] || printf '  VMs: %s' "$(vms_of "$m")"
    printf '\n'
  done
  machine_pid ctl >/dev/null || return 1
  in_machine ctl timeout 10 sinfo -N -o '%.8N %.8P %.12T %.20E'
}

# One object: {machines: [{name, on, services, vms}], nodes: [{name, partition, state, reason}]}
status_json() {
  local m s
  {
    for m in "${MC_MACHINES[@]}"; do
      if ! machine_pid "$m" >/dev/null; then
        echo "machine $m off"
        continue
      fi
      echo "machine $m on"
      for s in $(services_of "$m"); do
        ! present "$s" || echo "service $m $s $(service "$m" status "$s" || true)"
      done
      [[ $m != hv* ]] || for s in $(vms_of "$m"); do echo "vm $m $s"; done
    done
    ! machine_pid ctl >/dev/null || in_machine ctl timeout 10 sinfo -h -N -o 'node %N %R %T %E'
  } | jq -R -n '
    reduce (inputs | split(" ")) as $l ({schema_version: 1, machines: [], nodes: []};
      if $l[0] == "machine" then .machines += [{name: $l[1], on: ($l[2] == "on"), services: {}, vms: []}]
      elif $l[0] == "service" then .machines[-1].services[$l[2]] = $l[3]
      elif $l[0] == "vm" then .machines[-1].vms += [$l[2]]
      else .nodes += [{name: $l[1], partition: $l[2], state: $l[3], reason: ($l[4:] | join(" "))}] end)'
}

cmd_down() {
  local keep=no m
  case ${1:-} in
    '') ;;
    --keep) keep=yes ;;
    *) die "down: $1: not an option; tests/minicluster --help" ;;
  esac
  [ -d "$MC_DIR" ] || return 0
  [ -d "$MC_DIR/machines" ] || [ -z "$(ls -A "$MC_DIR")" ] || die "down: $MC_DIR: is not a mini-cluster's folder: nothing done"
  lock
  # Ending the switch ends all others with it; but one that is half started may not be inside it.
  for m in "${MC_MACHINES[@]}"; do stop_machine "$m" || die "down: $m: still has processes"; done
  [ $keep = yes ] || rm -rf --one-file-system "$MC_DIR"
  step "down"
}
