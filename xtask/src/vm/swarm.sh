# Run in a virtual machine before a lab: reading programs and writing data over the shared file system is slow, so both
# go to memory. Argument: the target folder.
set -e
target=$1
# Once for all labs of a machine.
[ ! -e /run/swarm/ready ] || exit 0

mkdir -p /run/swarm
for program in dockerd docker containerd containerd-shim-runc-v2 runc docker-proxy docker-init ctr; do
    path=$(command -v "$program") || path=$(command -v "/usr/libexec/docker/$program") || continue
    cp "$path" /run/swarm/
done

programs=$target/static/x86_64-unknown-linux-gnu/release
mkdir -p /run/programs "$target/lab"
cp "$programs/mesh-agent" "$programs/meshctl" "$programs/mesh-testbed" /run/programs/
mount --bind /run/programs "$programs"
mount -t tmpfs -o size=70% lab "$target/lab"

# Network namespaces begin with the settings of the machine's own, and dockerd relies on this one in the namespace of its
# mesh, as it sets it where it runs: which is the machine's own anywhere but in a lab.
sysctl -qw net.ipv4.ip_forward=1
touch /run/swarm/ready
