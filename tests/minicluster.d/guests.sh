# shellcheck shell=bash
# Guests: image, kind of virtualisation, ssh. Sourced by tests/minicluster.

# A /dev/kvm that opens is no proof that it works: only a boot is. Prints kvm or qemu (TCG).
probe_domain_type() {
  local image=$1
  if [ -w /dev/kvm ] && grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo &&
    timeout 20 qemu-system-x86_64 -accel kvm -cpu host -machine q35 -m 256 -nodefaults -display none -no-reboot -serial stdio \
      -kernel "$image/vmlinux" -initrd "$image/initrd.img" -append "console=ttyS0 quiet symvirt.probe" </dev/null 2>/dev/null |
    grep -q SYMVIRT-PROBE-OK; then
    echo kvm
  else
    echo qemu
  fi
}

# guest_ssh VM CMD...: as root, over the management network, from the control node.
guest_ssh() {
  local vm=$1 quoted rc=0
  shift
  printf -v quoted '%q ' "$@"
  in_machine ctl ssh -q -i "$MC_DIR/id" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 \
    -o BatchMode=yes "root@$vm" -- "$quoted" || rc=$?
  [ $rc -ne 255 ] || echo "minicluster: $vm: not reached by ssh (does the VM run? tests/minicluster status), or the command ended with 255" >&2
  return $rc
}
