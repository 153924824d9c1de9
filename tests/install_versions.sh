#!/bin/sh
# Makes what the tests of other versions of Cyrus need: Debian 11 (Cyrus 3.2) and Debian 13 (3.10),
# each in a folder of its own, by debootstrap and with the mirrors that this machine's apt uses.
#
#   tests/install_versions.sh [SUITE ...]          bullseye and trixie, where nothing is named
#
# A folder is made once and kept, in SYNCMUX_CYRUS_ROOTS or ~/.cache/syncmux-tests/cyrus. It has its
# name only when it is complete, so this may be interrupted at any moment. What has to be mounted
# meanwhile is mounted in a mount namespace of this script: it is gone with it, even by kill -9.
set -eu
cd "$(dirname "$0")/.."
. tests/install.sh

if [ -z "${SYNCMUX_IN_NAMESPACE:-}" ]; then
    install_packages debootstrap util-linux
    SYNCMUX_IN_NAMESPACE=yes exec unshare --mount --propagation private -- tests/install_versions.sh "$@"
fi

roots=${SYNCMUX_CYRUS_ROOTS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/syncmux-tests/cyrus}
packages="cyrus-imapd cyrus-replication cyrus-admin cyrus-clients sasl2-bin libsasl2-modules libsasl2-modules-db"

# Where this machine gets Debian's packages ($1 is empty) or their security updates (-security) from.
mirror() {
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
        awk -v codename="$codename$1" '$2 == codename && $3 == "main" { print $1; exit }'
}

# Cyrus into the Debian in the folder $1.
install_in() {
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$1" sh -euc '
        apt-get update -q
        apt-get install -q -y --no-install-recommends "$@"
        apt-get clean
        rm -rf /var/lib/apt/lists/*' sh $packages
}

# In the folder $2, which is not there yet, the Debian named $1 with its Cyrus.
make_root() {
    suite=$1
    new=$2
    main=$(mirror '')
    security=$(mirror -security)
    if [ -z "$main" ]; then
        echo "apt of this machine knows no Debian: name a mirror in /etc/apt/sources.list." >&2
        return 1
    fi
    debootstrap --variant=minbase "$suite" "$new" "$main"
    apt-config dump | grep '^Acquire::' >"$new/etc/apt/apt.conf.d/00host" || true
    cp /etc/resolv.conf /etc/hosts "$new/etc/"
    # What is lost when the power fails is made again: no fsync for each file.
    echo force-unsafe-io >"$new/etc/dpkg/dpkg.cfg.d/unsafe-io"
    printf 'path-exclude=/usr/share/%s/*\n' doc man locale >"$new/etc/dpkg/dpkg.cfg.d/small"
    # No service of the packages starts.
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
    chmod 755 "$new/usr/sbin/policy-rc.d"
    echo "deb $main $suite main" >"$new/etc/apt/sources.list"
    [ -z "$security" ] ||
        echo "deb $security $suite-security main" >>"$new/etc/apt/sources.list"
    mountpoint -q "$new/proc" || mount -t proc proc "$new/proc"
    # The same number as here: files of one test belong to one user, whichever version writes them.
    chroot "$new" useradd --system --uid "$(id -u cyrus)" --gid mail --home-dir /var/spool/cyrus \
        --no-create-home --shell /usr/sbin/nologin cyrus
    [ "$(chroot "$new" id -g cyrus)" = "$(id -g cyrus)" ]
    # Of an old Debian the security updates can be named by the mirror and yet be gone from it.
    if ! install_in "$new" && [ -n "$security" ]; then
        echo "Without the security updates:"
        echo "deb $main $suite main" >"$new/etc/apt/sources.list"
        install_in "$new"
    fi
    umount "$new/proc"
    [ "$(chroot "$new" id -u cyrus)" = "$(id -u cyrus)" ]
    [ -x "$new/usr/lib/cyrus/bin/sync_server" ]
    chroot "$new" dpkg-query -W -f '${Version}\n' cyrus-imapd >"$new/cyrus-version"
}

# Makes the folder of $1 unless it is there.
have_root() {
    suite=$1
    root=$roots/$suite
    [ ! -e "$root" ] || return 0
    echo "Making Debian $suite with its Cyrus in $root ..."
    start=$(date +%s)
    rm -rf --one-file-system "$root.new"
    # As a job, since in a condition the shell would go on after an error.
    make_root "$suite" "$root.new" >"$root.log" 2>&1 </dev/null &
    wait "$!" || {
        tail -n 30 "$root.log" >&2
        echo "Debian $suite could not be made; $root.log says all." >&2
        return 1
    }
    mv "$root.new" "$root"
    echo "Debian $suite: Cyrus $(cat "$root/cyrus-version"), made in $(($(date +%s) - start)) s."
}

[ "$#" != 0 ] || set -- bullseye trixie
mkdir -p "$roots"
jobs=
for suite in "$@"; do
    # One at a time makes one; both are made beside each other.
    (
        flock 9
        have_root "$suite"
    ) 9>"$roots/$suite.lock" &
    jobs="$jobs $!"
done
status=0
for job in $jobs; do
    wait "$job" || status=1
done
exit "$status"
