#!/bin/sh
# Makes the root file system of a Python application from Debian's packages and PyPI's wheels, without
# Docker and without a registry:
#
#     images/python-rootfs.sh requirements.txt out.tar
#
# requirements.txt pins every package with its hashes. The archive is the same for the same packages: times
# are SOURCE_DATE_EPOCH, entries are sorted, nothing of the machine that made it remains. Needs mmdebstrap
# and pip on the host; runs as root, or as a user who may use user namespaces.
#
# Environment:
#   SUITE         Debian release (bookworm; its Python must fit the wheels that requirements.txt pins)
#   AWS_SERVICES  service models of botocore that stay, since each costs boot time and memory (kms sts)
set -eu

# mmdebstrap calls this script again for each hook, with the new root as the last argument. Packages are
# extracted, not configured, so whatever their install scripts would have made is made here.
case "${1:-}" in
merged-usr)
    for dir in bin sbin lib lib64; do
        mkdir -p "$2/usr/$dir"
        ln -s "usr/$dir" "$2/$dir"
    done
    exit ;;
finish)
    root=$2
    site=$root/usr/local/lib/python3.11/dist-packages
    mkdir -p "$site" "$root/etc" "$root/root" "$root/tmp" "$root/run" "$root/dev" "$root/proc" "$root/sys"
    chmod 1777 "$root/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
    ln -sf dash "$root/usr/bin/sh"

    mkdir "$root/wheels"
    cp "$WHEELS"/*.whl "$root/wheels/"
    for wheel in "$root"/wheels/*.whl; do
        chroot "$root" /usr/bin/python3.11 -m zipfile -e "/wheels/${wheel##*/}" /usr/local/lib/python3.11/dist-packages
    done
    rm -r "$root/wheels"

    # Not needed to run an application: package manager, documentation, locales, character sets that glibc
    # alone would convert, Python's own tests and tools. Host name, resolver and mmdebstrap's own traces go too.
    cd "$root"
    rm -rf boot home media mnt opt srv tmp/* var/backups var/cache var/lib var/log var/local var/spool \
        etc/apt etc/cron.daily etc/debconf.conf etc/dpkg etc/fstab etc/gss etc/hostname etc/logrotate.d \
        etc/resolv.conf etc/update-motd.d \
        usr/bin/debconf* usr/bin/dpkg* usr/bin/py3* usr/bin/pydoc3* usr/bin/pdb3* usr/bin/update-alternatives \
        usr/games usr/include usr/src usr/sbin usr/lib/dpkg usr/lib/systemd usr/lib/x86_64-linux-gnu/gconv \
        usr/share/applications usr/share/binfmts usr/share/bug usr/share/debconf usr/share/debianutils \
        usr/share/doc usr/share/dpkg usr/share/info usr/share/lintian usr/share/locale usr/share/man \
        usr/share/menu usr/share/perl5 usr/share/pixmaps usr/share/polkit-1 usr/share/python3
    (cd usr/lib/python3.11 && rm -rf doctest.py idlelib lib2to3 pydoc.py pydoc_data test turtle.py \
        turtledemo lib-dynload/*test* lib-dynload/xxlimited*)
    mkdir -p usr/sbin
    # Service models come by the hundred; those not asked for only fill memory.
    if [ -d "$site/botocore/data" ]; then
        for model in "$site"/botocore/data/*/; do
            name=${model%/}
            case " ${AWS_SERVICES:-kms sts} " in
            *" ${name##*/} "*) ;;
            *) rm -r "$model" ;;
            esac
        done
        rm -rf "$site/boto3/examples" "$site"/boto3/data/*/
    fi

    # Byte code that is trusted by its own hash: compiling at every boot would cost seconds, and a time
    # stamp in it would make each build differ. `-s` keeps the build's path out of it.
    find "$root/usr" -name __pycache__ -prune -exec rm -r {} +
    PYTHONHASHSEED=0 chroot "$root" /usr/bin/python3.11 -m compileall -q -j 0 \
        --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3 /usr/local/lib/python3.11 || true
    exit ;;
esac

requirements=$1
out=$2
suite=${SUITE:-bookworm}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000}
here=$(readlink -f "$0")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
export WHEELS="$work/wheels"

python3 -m pip download --quiet --dest "$WHEELS" --require-hashes --no-deps --only-binary :all: \
    --python-version 3.11 --platform manylinux2014_x86_64 --platform any -r "$requirements"
chmod -R a+rX "$work"

mmdebstrap --quiet --variant=extract --skip=cleanup --format=tar \
    --include=python3-minimal,python3.11,libpython3.11-stdlib,libpython3.11-minimal,dash,base-files,netbase \
    --setup-hook="sh $here merged-usr \"\$1\"" \
    --extract-hook="sh $here finish \"\$1\"" \
    "$suite" "$work/rootfs.tar"
mv "$work/rootfs.tar" "$out"
