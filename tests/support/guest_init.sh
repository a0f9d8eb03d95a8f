#!/bin/sh
# Owns a test guest from the kernel's start to its end: modules, the root file system, then an agent that runs what
# the second serial line asks for. Never decides what is tested.
#
# Kernel parameters: root=TAG rootfstype=virtiofs (or a disk and its type) and init=PROGRAM, as a kernel with all drivers
# built in takes them; overlay=1 puts a tmpfs over the root. Without init= the agent is what is started in the root.
#
# The line: a command in base64 comes in; 'STATUS,OUTPUT,ERRORS' goes out, both in base64.

if [ "$1" != agent ]; then
    /bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /new
    /bin/busybox mount -t proc proc /proc
    /bin/busybox mount -t sysfs sysfs /sys
    /bin/busybox mount -t devtmpfs dev /dev
    /bin/busybox ln -s /proc/self/fd /dev/fd
    /bin/busybox mount -t tmpfs run /run
    /bin/busybox --install -s /bin
    for module in /modules/*; do
        insmod "$module" || echo "guest: cannot load $module"
    done
    root="" type="" overlay="" program="/bin/sh /run/agent"
    for word in $(cat /proc/cmdline); do
        case $word in
        root=*) root=${word#root=} ;;
        rootfstype=*) type=${word#rootfstype=} ;;
        overlay=1) overlay=1 ;;
        init=*) program=${word#init=} ;;
        esac
    done
    cp /init /run/agent
    [ ! -d /extra ] || cp -r /extra /run/
    if [ -n "$root" ]; then
        lower=/new
        [ -z "$overlay" ] || lower=/run/lower
        mkdir -p "$lower"
        mount -t "$type" -o ro "$root" "$lower" || exec echo "guest: cannot mount the root"
        if [ -n "$overlay" ]; then
            mkdir /run/tmpfs
            mount -t tmpfs upper /run/tmpfs
            mkdir /run/tmpfs/upper /run/tmpfs/work
            mount -t overlay -o "lowerdir=$lower,upperdir=/run/tmpfs/upper,workdir=/run/tmpfs/work" root /new ||
                exec echo "guest: cannot mount the overlay"
        fi
        for place in proc sys dev run; do
            mount --move "/$place" "/new/$place"
        done
        exec switch_root /new $program agent
    fi
fi

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo ready >&3
while read -r line <&3; do
    echo "$line" | base64 -d >/run/command
    sh /run/command >/run/output 2>/run/errors </dev/null 3>&-
    echo "$?,$(base64 -w0 </run/output),$(base64 -w0 </run/errors)" >&3
done
