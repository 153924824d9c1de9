#!/bin/sh
# Makes certificates for development: a CA, the replica's certificate (with the name that syncmux
# checks) and one for syncmux as a client. Never commit what it writes; never use it in production.
#
#   certs/make.sh [FOLDER] [SERVER-NAME...]      (default: certs/dev, replica.example.com localhost)
#   CLIENT_NAME=NAME certs/make.sh ...           the name in the client's certificate, for allowed_names
#                                                (default: master.example.com)
#
# Keys and folder are for who runs this alone; README.md beside it says how to copy them.
set -eu
umask 077
client=${CLIENT_NAME:-master.example.com}
folder=${1:-"$(dirname "$0")/dev"}
[ "$#" = 0 ] || shift
[ "$#" != 0 ] || set -- replica.example.com localhost
mkdir -p "$folder"
cd "$folder"

names=
for name in "$@"; do
    case $name in
    *[!0-9.]*) names="$names,DNS:$name" ;;
    *) names="$names,IP:$name" ;;
    esac
done
names=${names#,}

key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null
}

# sign NAME SUBJECT EXTENSIONS
sign() {
    key "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
    extensions=$(mktemp)
    printf '%b' "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n$3" >"$extensions"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 90 \
        -sha256 -extfile "$extensions" -out "$1.pem" 2>/dev/null
    rm -f "$extensions" "$1.csr"
}

if [ ! -e ca.key ]; then
    key ca.key
    openssl req -x509 -new -key ca.key -subj "/CN=syncmux development CA" -days 365 -sha256 \
        -addext "basicConstraints=critical,CA:TRUE" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.pem
fi
sign replica "$1" "extendedKeyUsage=serverAuth\nsubjectAltName=$names\n"
sign client "$client" "extendedKeyUsage=clientAuth\nsubjectAltName=DNS:$client\n"
chmod 644 ca.pem replica.pem client.pem
rm -f ca.srl
openssl verify -CAfile ca.pem replica.pem client.pem
