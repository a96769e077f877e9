#!/usr/bin/env bash
# Installs Cloud Storage FUSE on Debian or Ubuntu, unless it is installed, from Google's packages
# (https://cloud.google.com/storage/docs/cloud-storage-fuse/install). --dry_run prints every command instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/run.sh

dry_run=''
case ${1:-} in
  '') ;;
  --dry_run) dry_run=yes ;;
  -h | --help) usage ;;
  *) wrong "there is no option $1: --dry_run is the only one" ;;
esac
if [ -z "$dry_run" ] && command -v gcsfuse >/dev/null; then exit; fi

key=/usr/share/keyrings/cloud.google.asc
# A new machine may still be running its first updates, which hold the package lock.
apt=(sudo apt-get -o DPkg::Lock::Timeout=600 --quiet --yes)
run sudo curl --fail --silent --show-error --location --output $key https://packages.cloud.google.com/apt/doc/apt-key.gpg
run sudo sh -c ". /etc/os-release && echo \"deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-\$VERSION_CODENAME main\" >/etc/apt/sources.list.d/gcsfuse.list"
run "${apt[@]}" update
run "${apt[@]}" install gcsfuse
