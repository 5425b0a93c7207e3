# What a virtual machine runs first, as root, over this machine's file system: connects the command with the
# caller (virtme-ng relies on udev for that, which not every machine has), and makes the guest a node that tests find
# as they find any other. Arguments: the folder of this run.
run=$1

port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name")" = "$1" ]; then
            echo "/dev/${port##*/}"
            return
        fi
    done
}

exec </dev/null >"$(port virtme.stdout)" 2>"$(port virtme.stderr)"

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
# Not every kernel has these built in; dockerd expects them.
modprobe -qa overlay br_netfilter veth vxlan
sh "$run/command.sh"
echo $? >"$(port virtme.ret)"
