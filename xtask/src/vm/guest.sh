# What a virtual machine runs first, as root, over this machine's file system: connects the command with the
# caller (virtme-ng relies on udev for that, which not every machine has), and makes the guest a node that tests find
# as they find any other. Arguments: the folder of this run, the target folder.
run=$1
target=$2

# The shell reads this file as it goes, and the folder it is in is mounted anew below.
case $0 in
/run/guest.sh) ;;
*) cp "$0" /run/guest.sh && exec sh /run/guest.sh "$@" ;;
esac

port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name")" = "$1" ]; then
            echo "/dev/${port##*/}"
            return
        fi
    done
}

# Where there is udev, virtme-ng has connected them, and a port cannot be opened twice.
exec </dev/null
if [ "$(readlink /proc/$$/fd/1)" != "$(port virtme.stdout)" ]; then
    exec >"$(port virtme.stdout)" 2>"$(port virtme.stderr)"
fi

# virtme-ng mounts without a cache, so that each program is read anew each time it is started. These files do not change
# meanwhile.
cached() {
    tag=$(findmnt --noheadings --output SOURCE "$1")
    umount "$1" && mount -t 9p -o "version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose,$2" "$tag" "$1"
}
cached "$target" rw
cached /run/usr ro
for folder in bin sbin libexec lib/x86_64-linux-gnu; do
    mount --bind "/run/usr/$folder" "/usr/$folder"
done

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
# Not every kernel has these built in; dockerd expects them.
modprobe -qa overlay br_netfilter veth vxlan tun
# The folder that it names does not exist, and runc would keep files there.
unset XDG_RUNTIME_DIR
sh "$run/command.sh"
code=$?
sync
echo $code >"$(port virtme.ret)"
exit $code
