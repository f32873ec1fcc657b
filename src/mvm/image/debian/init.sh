#!/bin/sh
# First program in a guest: load modules, put a writable layer over the read-only root, become mvm's own init.
export PATH=/bin

fail() {
    echo "mvm: the guest cannot start: $1" >/dev/console
    reboot -f # a runtime ends the machine then, so the host sees it
}

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev || fail "no devices"
# A machine may have no console at all; whatever is started has something open all the same.
(: >/dev/console) 2>/dev/null || exec </dev/null >/dev/null 2>&1

while read -r module; do
    insmod "/modules/$module.ko" || fail "the module $module does not load"
done </modules/order

# The drive is found by its serial number; the device of a virtio drive comes up a moment after its module. Under
# Firecracker a drive has a number that nobody chose instead, and the root is the first one.
tries=0 root=
while [ -z "$root" ]; do
    for disk in /sys/block/vd*; do
        serial=$(cat "$disk/serial" 2>/dev/null)
        case "${disk##*/} $serial" in
        *" rootfs") root=/dev/${disk##*/} ;;
        "vda "*[!0-9]* | "vda ") ;;
        "vda "*) root=/dev/vda ;;
        esac
    done
    [ "$tries" -ge 50 ] && [ -b /dev/vda ] && root=/dev/vda
    [ "$tries" -ge 500 ] && fail "there is no drive with the serial number rootfs"
    tries=$((tries + 1))
    [ -n "$root" ] || sleep 0.01
done

kind=erofs
read -r words </proc/cmdline
for word in $words; do
    case "$word" in
    rootfstype=*) kind=${word#*=} ;;
    esac
done

mount -t "$kind" -o ro "$root" /lower || fail "the root drive $root cannot be mounted"
mount -t tmpfs -o mode=0755 layer /layer && mkdir /layer/upper /layer/work || fail "no memory for the root's layer"
mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /root || fail "no overlay"
for each in proc sys dev; do
    mount -o move "/$each" "/root/$each" || fail "/$each cannot be moved"
done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
exec /bin/busybox switch_root /root /usr/bin/python3 -I -S /opt/mvm/guest.pyz init
