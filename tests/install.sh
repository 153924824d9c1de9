#!/bin/sh
# Installs what the tests, the demo and the benchmark need and this machine lacks: Debian's Cyrus;
# ip and nft for the tests in network namespaces; promtool, which checks deploy/grafana (it comes with prometheus; no service starts).
# Sourced or run; needs root. Rust is expected to be there.
set -eu

# Those of these packages that are missing.
install_packages() {
    missing=
    for package in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "Installing$missing ..."
    # The packages would start a service of their own: not here. A policy that is there stays.
    policy=/usr/sbin/policy-rc.d
    ours=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        ours=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    status=0
    # shellcheck disable=SC2086
    { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } \
        >"$log" 2>&1 </dev/null || status=$?
    [ -z "$ours" ] || rm -f "$policy"
    [ "$status" = 0 ] || tail -n 30 "$log" >&2
    rm -f "$log"
    return "$status"
}

if [ "$(id -u)" != 0 ]; then
    echo "This must be run as root: Cyrus is started as its own user." >&2
    exit 1
fi
install_packages cyrus-imapd cyrus-replication cyrus-admin cyrus-clients sasl2-bin \
    libsasl2-modules libsasl2-modules-db openssl iproute2 nftables prometheus
