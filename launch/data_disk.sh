#!/usr/bin/env bash
# Mounts this machine's data disk read-only at /mnt/data, unless it is: the one disk none of whose parts is in use. Several
# workers of a slice can share a disk only so. --dry_run prints the commands instead.
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
if [ -z "$dry_run" ] && mountpoint --quiet /mnt/data; then exit; fi

disks=()
for disk in $(lsblk --noheadings --nodeps --paths --list --output NAME,TYPE | awk '$2 == "disk" {print $1}'); do
  [ -n "$(lsblk --noheadings --list --output MOUNTPOINT "$disk" | tr -d '[:space:]')" ] || disks+=("$disk")
done
[ -z "$dry_run" ] || disks=(/dev/sdb)
[ ${#disks[@]} = 1 ] || wrong "this machine has ${#disks[@]} disks that are not in use, not one: mount the data disk at /mnt/data yourself"
run sudo mkdir -p /mnt/data
run sudo mount --options ro "${disks[0]}" /mnt/data
